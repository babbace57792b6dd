"""Which operations a training step calls, with which arguments, how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cae_raw.backends import NUMPY, Backend
from cae_raw.measure.counts import Amount, amount_of
from cae_raw.measure.problem import Problem
from cae_raw.ops import Op, watched
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import OPTIMIZERS

# What an operation changes in place, by position.
IN_PLACE = {"l1_backward": (0,), "sgd_step": (0, 2), "adam_step": (0, 2, 3)}


@dataclass
class Call:
    """An operation with the arguments of one of its calls, as they were before it.

    Attributes:
        per_step: calls with arguments of these shapes in one training step.
        in_step: the step that training runs makes them; False for a call that only the readable
            path, layer by layer, makes, because a fused step does that work.
    """

    op: Op[Any, Any]
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    per_step: int = 0
    in_step: bool = False

    def copied(self, convert: Callable[[Any], Any]) -> Call:
        """The same with every array replaced by `convert` of it."""
        args = tuple(convert(a) if _is_array(a) else a for a in self.args)
        kwargs = {k: convert(v) if _is_array(v) else v for k, v in self.kwargs.items()}
        return Call(self.op, self.function, args, kwargs, self.per_step, self.in_step)

    def run(self) -> list[Any]:
        """Call it; returns the arrays that it made or changed."""
        result = self.function(*self.args, **self.kwargs)
        made = [] if result is None else list(result) if isinstance(result, tuple) else [result]
        return made + [self.args[i] for i in IN_PLACE.get(self.op.name, ())]

    @property
    def amount(self) -> Amount:
        return amount_of(self.op, *self.args, **self.kwargs)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self.args, *self.kwargs.values()) if _is_array(a))

    def __str__(self) -> str:
        """The shapes of the arrays, and what else tells it from others of its operation."""
        shapes = [_shape(a) for a in self.args if _is_array(a) and a.ndim]
        names = ("activation", "kernel_size", "stride", "padding")
        named = [f"{k} {_plain(self.kwargs[k])}" for k in names if _says_something(self.kwargs, k)]
        return ", ".join(shapes + named)


def calls_of_a_step(
    problem: Problem, images: np.ndarray, batch: int, backend: Backend = NUMPY
) -> list[Call]:
    """Every operation of one training step, in the order of first calls.

    Arrays keep what they held at the first call with these shapes. The step runs twice, the way
    training runs it and layer by layer, and what both call is listed once. On the CPU it runs on
    one thread, for the order's sake; shapes do not depend on the number of threads.
    """
    placed, indices = backend.asarray(images), np.arange(batch)
    found: dict[Any, Call] = {}
    for fused in (True, False):
        model = problem.build().to(backend)
        optimizer = OPTIMIZERS[problem.optimizer](model, lr=problem.lr)
        seen: dict[Any, Call] = {}
        engine = Engine(model, problem.image_shape, threads=1, fused=fused)
        with engine, watched(lambda op, function, seen=seen: _recorder(op, function, seen)):  # type: ignore[misc]
            engine.step(placed, indices)
            optimizer.step(engine.gradients, engine.in_order)
        for key, call in seen.items():
            call.in_step = fused
            if call.args[0].size:  # an optimizer counts its steps by moving no parameters
                found.setdefault(key, call)
    return list(found.values())


def _recorder(
    op: Op[Any, Any], function: Callable[..., Any], seen: dict[Any, Call]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        named = {k: _key(v) for k, v in kwargs.items()}
        key = (op.name, *map(_key, args), *sorted(named.items()))
        if key not in seen:
            seen[key] = Call(op, function, args, kwargs).copied(lambda array: array.copy())
        seen[key].per_step += 1
        return function(*args, **kwargs)

    return call


def _key(value: Any) -> Any:
    return (value.shape, str(value.dtype)) if _is_array(value) else value


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "nbytes")


def _says_something(kwargs: dict[str, Any], name: str) -> bool:
    default = {"stride": (1, 1), "padding": (0, 0)}.get(name)
    return kwargs.get(name, default) not in (default, None)


def _shape(array: Any) -> str:
    return "x".join(map(str, array.shape))


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
