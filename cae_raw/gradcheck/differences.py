"""NumPy gradients against central differences.

In float64, along random unit directions d of the input and of each parameter, <gradient, d> is
compared with (f(x + h d) - f(x - h d)) / 2h. f is a layer's output times fixed random weights, a
model's loss with its L2 term, or a loss of labels. A direction that crosses a kink (a ReLU that
switches, another maximum in a pooling window) is drawn anew: there is no derivative to compare
with.

Why directions: two forward passes see the gradient of a whole array, because a random direction
touches every element of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cae_raw.gradcheck.cases import Configuration, decisions, label, run_both_ways, same, ways
from cae_raw.gradcheck.check import Check
from cae_raw.layers import CrossEntropyLoss, Gradients, MSELoss, Sequential, Trace
from cae_raw.layers.loss import LOSSES
from cae_raw.models import Autoencoder
from cae_raw.training.layerwise import Layerwise
from cae_raw.training.optimizers import SGD

Array = Any

STEP = 2.0**-15
DIRECTIONS = 6
TRIES = 20  # directions drawn until one crosses no kink
TOLERANCE = 1e-7
REASON = (
    "central differences in float64 with h = 2^-15: about h^2/6 = 2e-10 is cut off and "
    "eps64/h = 7e-12 rounded off, times some cancellation; a wrong term shows at 1e-3 and above"
)
L2 = 2.0**-6  # large enough that a missing L2 term fails
SPARSITY = 0.5  # the same of the mean of |code|
FLOAT64 = np.finfo(np.float64)


@dataclass
class Problem:
    """A function of arrays that are changed where they stand, and its gradients.

    `terms(trace)` are numbers whose sum is the function's value; the difference of two values is
    taken term by term, which rounds less than the difference of two sums.
    """

    arrays: dict[str, Array]
    terms: Callable[[Trace], Array]
    gradients: Callable[[], Mapping[str, Array]]


def gradient_checks(configuration: Configuration) -> Iterator[Check]:
    """One check for the input and for each parameter; for a model, with each kind of loss."""
    rng = configuration.rng(1)
    stack = configuration.build().astype(np.float64)
    x = configuration.draw(rng)
    if isinstance(stack, Autoencoder):
        target = rng.uniform(*stack.value_range, configuration.shape)
        problems = {f", {kind}": penalised_loss(stack, x, target, kind) for kind in LOSSES}
    elif configuration.loss is not None:
        problems = {"": loss_of_labels(stack, x, configuration.labels, configuration.loss)}
    else:
        problems = {"": weighted_output(stack, x, rng)}
    if True in ways(stack):
        problems[", fused"] = weighted_output(stack, x, rng, fused=True)
    for extra, problem in problems.items():
        gradients = problem.gradients()
        for what, array in problem.arrays.items():
            error = directional_error(stack, problem, array, gradients[what], rng)
            yield Check(
                layer=configuration.name,
                configuration=f"{configuration}{extra}",
                kind="gradient",
                what=label(stack, what),
                shape=array.shape,
                error=error,
                tolerance=TOLERANCE,
                reason=REASON,
                note="" if error == error else f"NaN, or a kink in each of {TRIES} directions",
            )


def weighted_output(
    stack: Sequential, x: Array, rng: np.random.Generator, fused: bool = False
) -> Problem:
    """f = sum of the output times fixed random weights, which are then the output's gradient."""
    weights = rng.standard_normal(stack.forward(x).shape)
    return Problem(
        {"input": x, **stack.params},
        lambda trace: stack.forward(x, trace) * weights,
        lambda: run_both_ways(stack, x, weights, {}, fused=fused),
    )


def loss_of_labels(
    stack: Sequential, x: Array, labels: np.ndarray, loss: CrossEntropyLoss
) -> Problem:
    """f = the loss of the output and the labels."""
    return Problem(
        {"input": x, **stack.params},
        lambda trace: np.array([loss(stack.forward(x, trace), labels)[0]]),
        lambda: run_both_ways(stack, x, loss(stack.forward(x), labels)[1], {}),
    )


def penalised_loss(model: Autoencoder, x: Array, target: Array, kind: str) -> Problem:
    """f = the loss against a target, plus L2 on encoder and decoder, plus L1 on the code."""
    loss = MSELoss(kind)
    optimizer = SGD(model, lr=1, l2=model.l2(L2, decoder=True))

    def terms(trace: Trace) -> Array:
        code = trace[model] = model.encode(x, trace)  # for `decisions`
        y = model.forward(code, trace, start=model.encoder_length)
        sparse = SPARSITY * np.abs(code).mean()
        return np.array([loss(y, target)[0], optimizer.penalty(), sparse])

    def gradients() -> Mapping[str, Array]:
        found: Gradients = model.split(np.full_like(model.parameters, np.nan))
        step = Layerwise(model, loss, SPARSITY)
        found["input"] = step.gradients(x, target, len(x), found, need_dx=True)[1]
        before = model.parameters.copy()
        optimizer.step(np.concatenate([found[name].ravel() for name in model.names]))
        model.parameters[...] = before
        # After a first step the velocity is the gradient, with the L2 term in it.
        return {"input": found["input"], **model.split(optimizer.state["velocity"])}

    return Problem({"input": x, **model.params}, terms, gradients)


def directional_error(
    stack: Sequential, problem: Problem, array: Array, gradient: Array, rng: np.random.Generator
) -> float:
    """max|a - n| / max(|a|, |n|, floor) over some directions; NaN if each one crosses a kink.

    a is <gradient, d> and n the central difference. Each maximum is over all directions, so that
    one in which the terms happen to cancel is measured against the others. The floor is what
    rounding alone can add to n, divided by the tolerance: a derivative of zero passes in spite of
    rounding, and a wrong one fails as soon as it stands out of the rounding.
    """
    found = [smooth_difference(stack, problem, array, rng) for _ in range(DIRECTIONS)]
    if any(one is None for one in found):
        return np.nan
    directions, numeric, rounding = zip(*(one for one in found if one is not None), strict=True)
    analytic = np.array([np.sum(gradient * d) for d in directions])
    floor = max(*rounding, FLOAT64.tiny) / TOLERANCE
    largest = max(np.abs(analytic).max(), np.abs(numeric).max(), floor)
    return float(np.abs(analytic - np.array(numeric)).max() / largest)


def smooth_difference(
    stack: Sequential, problem: Problem, array: Array, rng: np.random.Generator
) -> tuple[Array, float, float] | None:
    """A unit direction without a kink, the central difference along it, and its rounding error."""
    base = array.copy()
    for _ in range(TRIES):
        direction = rng.standard_normal(array.shape)
        direction /= max(float(np.linalg.norm(direction)), FLOAT64.tiny)
        traces: tuple[Trace, Trace] = ({}, {})
        array[...] = base + STEP * direction
        plus = problem.terms(traces[0])
        array[...] = base - STEP * direction
        minus = problem.terms(traces[1])
        array[...] = base
        if same(decisions(stack, traces[0]), decisions(stack, traces[1])):
            difference = float(np.sum(plus - minus)) / (2 * STEP)
            rounding = 8 * float(FLOAT64.eps) * float(np.linalg.norm(plus)) / STEP
            return direction, difference, rounding
    return None
