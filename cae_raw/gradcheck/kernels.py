"""Kernels against their NumPy references.

Every operation that a layer or a model calls, forward and backward, is recorded with its arguments
while the layer runs in NumPy in float32. Then it runs twice more: by the reference in float64, and
by the kernel. That names the kernel that is wrong. After that the layer runs on the device as a
whole, which shows that it hands its kernels the right arrays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, nan, prod
from typing import Any

import numpy as np

from cae_raw.backends import Backend
from cae_raw.gradcheck.cases import Configuration, decisions, label, run_both_ways, same, ways
from cae_raw.gradcheck.check import Check
from cae_raw.layers import MSELoss, Sequential, Trace
from cae_raw.models import Autoencoder
from cae_raw.ops import Op, watched
from cae_raw.ops.batch import gather, gather_flipped
from cae_raw.ops.single_layer import single_layer_forward, single_layer_gradients
from cae_raw.training.layerwise import Layerwise
from cae_raw.training.optimizers import OPTIMIZERS

Array = Any
Arguments = Mapping[str, Any]

FACTOR = 8
REASON = "8 * eps32 * sqrt(R), relative to max|reference|: R = {} float32 terms in a sum"
TRIES = 5

# R: how many terms the sum behind one element has. What is not here is computed elementwise.
SUM_LENGTHS: dict[str, Callable[[Arguments], int]] = {
    "conv2d_forward result": lambda a: prod(a["w"].shape[1:]) + 1,
    "conv2d_backward_input result": lambda a: prod(a["w"].shape) // a["w"].shape[1],
    "conv2d_backward_weight result": lambda a: a["dy"].size // a["dy"].shape[1],
    "conv2d_backward_bias result": lambda a: a["dy"].size // a["dy"].shape[1],
    "conv2d_pool_forward result 0": lambda a: prod(a["w"].shape[1:]) + 1,
    "conv2d_pool_backward_input result": lambda a: prod(a["w"].shape) // a["w"].shape[1],
    "conv2d_pool_backward_weight result": lambda a: a["dy"].size // a["dy"].shape[1],
    "unpool_conv2d_forward result": lambda a: prod(a["w"].shape[1:]) + 1,
    "unpool_conv2d_backward_input result": lambda a: prod(a["w"].shape) // a["w"].shape[1],
    "unpool_conv2d_backward_weight result": lambda a: a["dy"].size // a["dy"].shape[1],
    "linear_forward result": lambda a: a["w"].shape[1] + 1,
    "linear_backward_input result": lambda a: a["w"].shape[0],
    "linear_backward_weight result": lambda a: a["dy"].shape[0],
    "linear_backward_bias result": lambda a: a["dy"].shape[0],
    "mask_scatter result": lambda a: prod(a["kernel_size"]),
    "squared_error result 0": lambda a: a["y"].size,
    "cross_entropy result 0": lambda a: a["x"].size,
    "cross_entropy result 1": lambda a: a["x"].shape[1],
    "penalty result": lambda a: a["p"].size,
    "single_layer_forward result": lambda a: a["indices"].size * prod(a["images"].shape[1:]),
    "single_layer_gradients result 0": lambda a: a["indices"].size * prod(a["images"].shape[1:]),
    # A gradient sums over the code's positions, and each term of it over 9 * F more.
    "single_layer_gradients result 1": lambda a: (
        a["indices"].size * (a["images"].shape[2] + 2) * (a["images"].shape[3] + 2)
        + 9 * len(a["b1"])
    ),
}


@dataclass
class Call:
    """One call of an operation; its arrays are copies from before the call."""

    op: Op[Any, Any]
    reference: Callable[..., Any]
    bound: inspect.BoundArguments

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {k: v for k, v in self.bound.arguments.items() if isinstance(v, np.ndarray)}

    def converted(self, convert: Callable[[np.ndarray], Array]) -> inspect.BoundArguments:
        """The arguments with every array replaced by `convert` of a copy of it."""
        signature = inspect.signature(self.reference)
        bound = signature.bind(*self.bound.args, **self.bound.kwargs)
        bound.arguments.update({k: convert(v.copy()) for k, v in self.arrays.items()})
        return bound

    def sum_length(self, what: str) -> int:
        rule = SUM_LENGTHS.get(f"{self.op.name} {what}")
        return max(1, rule(self.bound.arguments)) if rule else 1


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Keep every call of an operation in NumPy that is made inside the block."""
    calls: list[Call] = []

    def recorder(op: Op[Any, Any], reference: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(reference)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = Call(op, reference, signature.bind(*args, **kwargs))
            made.bound = made.converted(lambda copy: copy)
            calls.append(made)
            return reference(*args, **kwargs)

        return call

    with watched(recorder):
        yield calls


def kernel_checks(configuration: Configuration, backend: Backend) -> Iterator[Check]:
    """The kernels that one configuration calls, each alone, then the configuration as a whole."""
    calls = record(configuration)
    subject: dict[str, Any] = {"layer": configuration.name, "configuration": str(configuration)}
    for call in calls:
        for outcome in replay(call, backend):
            yield Check(**subject, **outcome)
    longest = max((call.sum_length("result") for call in calls), default=1)
    for fused in ways(configuration.build()):
        for outcome in whole(configuration, backend, longest, fused):
            yield Check(**subject, **outcome)


def record(configuration: Configuration) -> list[Call]:
    """Run a configuration in NumPy, float32; a model also through a training step."""
    rng = configuration.rng(2)
    stack = configuration.build()
    x, weights = _inputs(configuration, stack, rng)
    with recorded() as calls:
        for fused in ways(stack):
            run_both_ways(stack, x, weights, {}, fused=fused)
        if isinstance(stack, Autoencoder):
            _training_step(stack, configuration.shape, rng)
        if configuration.loss is not None:
            labels = configuration.labels
            for given in (labels, labels.astype(np.uint8)):
                configuration.loss(stack.forward(x), given)
    return calls


def replay(call: Call, backend: Backend) -> Iterator[dict[str, Any]]:
    """Run a recorded call by its reference in float64 and by its kernel.

    Yields fields of `Check`; `what` is "result", "result 0" and so on where there are several, or
    the name of an argument that the operation writes to (or must not write to and did).
    """
    subject = {"kind": "kernel", "kernel": call.op.name}
    wide = call.converted(_widened)
    expected = _results(call.reference(*wide.args, **wide.kwargs))
    try:
        narrow = call.converted(backend.asarray)
        results = _results(call.op.launcher(*narrow.args, **narrow.kwargs))
        actual = [backend.to_numpy(result) for result in results]
        after = {name: backend.to_numpy(narrow.arguments[name]) for name in call.arrays}
    except Exception as error:  # whatever a kernel raises is a failed check, not the end of all
        yield {**subject, "what": "result", "error": nan, "note": _in_one_line(error)}
        return
    if len(expected) != len(actual):
        note = f"the kernel returns {len(actual)} arrays, its reference {len(expected)}"
        yield {**subject, "what": "result", "error": nan, "note": note}
        return
    for i, arrays in enumerate(zip(expected, actual, strict=True)):
        what = "result" if len(expected) == 1 else f"result {i}"
        yield {**subject, "what": what, **compare(*arrays, call.sum_length(what))}
    for name, before in call.arrays.items():
        if not _identical(_widened(before), wide.arguments[name]):
            outcome = compare(wide.arguments[name], after[name], call.sum_length("result"))
            yield {**subject, "what": name, **outcome}
        elif not _identical(before, after[name]):
            note = "the kernel changes an argument that it should only read"
            yield {**subject, "what": name, "shape": before.shape, "error": inf, "note": note}


def whole(
    configuration: Configuration, backend: Backend, length: int, fused: bool
) -> Iterator[dict[str, Any]]:
    """The configuration on the device against NumPy in float64: output and all gradients.

    An input for which rounding alone decides a ReLU or a maximum differently is drawn anew.
    """
    rng = configuration.rng(3)
    wide = configuration.build().astype(np.float64)
    subject = {"kind": "device"}
    try:
        narrow = configuration.build().to(backend)
        for _ in range(TRIES):
            x, weights = _inputs(configuration, wide, rng)
            traces: tuple[Trace, Trace] = ({}, {})
            given = (_widened(x), _widened(weights), traces[0])
            expected = run_both_ways(wide, *given, fused=fused)
            found = run_both_ways(narrow, x, weights, traces[1], backend, fused)
            actual = {name: backend.to_numpy(array) for name, array in found.items()}
            if same(decisions(wide, traces[0]), decisions(narrow, traces[1], backend)):
                break
    except Exception as error:  # as in `replay`
        yield {**subject, "what": "output", "error": nan, "note": _in_one_line(error)}
        return
    for what, array in expected.items():
        yield {**subject, "what": label(wide, what), **compare(array, actual[what], length)}


def compare(expected: Array, actual: Array, length: int) -> dict[str, Any]:
    """Fields of `Check` for a device's array against the reference's: exact for whole numbers."""
    found: dict[str, Any] = {"shape": actual.shape}
    if expected.shape != actual.shape:
        return {**found, "error": inf, "note": f"the reference has the shape {expected.shape}"}
    if not _is_float(expected):
        wrong = np.count_nonzero(expected != actual) / max(1, expected.size)
        return {**found, "error": float(wrong)}
    difference = float(np.max(np.abs(_widened(actual) - expected), initial=0))
    largest = float(np.max(np.abs(expected), initial=0))
    found["error"] = difference / largest if largest else (inf if difference else 0.0)
    found["tolerance"] = float(FACTOR * np.finfo(np.float32).eps * np.sqrt(length))
    found["reason"] = REASON.format(length)
    return found


def _inputs(
    configuration: Configuration, stack: Sequential, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A batch and an output gradient for it, float32."""
    x = configuration.draw(rng).astype(np.float32)
    return x, rng.standard_normal(stack.forward(x).shape).astype(np.float32)


def _training_step(model: Autoencoder, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """What training adds to the layers: a batch made of bytes, loss, optimizers, penalty."""
    low, high = model.value_range
    images = rng.integers(0, 256, (2 * shape[0], *shape[1:]), dtype=np.uint8)
    indices = rng.integers(0, len(images), shape[0])
    scaling: dict[str, Any] = {"scale": (high - low) / 255, "shift": low}
    gather_flipped(images, indices, (indices % 2).astype(np.uint8))
    x = gather(images, indices, **scaling)
    if model.fused_cuda is not None:
        whole_model = (images, indices, *model.params.values())
        single_layer_gradients(*whole_model, **scaling, gradient_scale=1 / x.size)
        single_layer_forward(*whole_model, **scaling)
    flat = np.full_like(model.parameters, np.nan)
    Layerwise(model, MSELoss(model.loss), 0.5).gradients(x, x, len(x), model.split(flat))
    for make in OPTIMIZERS.values():
        optimizer = make(model, lr=0.125, l2=model.l2(2.0**-6))
        optimizer.penalty()
        for _ in range(2):  # the second step starts from a state that is not zero
            optimizer.step(flat)


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if _is_float(array) else array


def _is_float(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _identical(first: Array, second: Array) -> bool:
    return np.array_equal(first, second, equal_nan=_is_float(first))


def _results(returned: Any) -> list[Array]:
    if returned is None:
        return []
    return list(returned) if isinstance(returned, tuple) else [returned]


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
