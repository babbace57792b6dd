"""The configurations that are checked: small, not square, odd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cae_raw.backends import NUMPY, Backend
from cae_raw.errors import InputError
from cae_raw.layers import (
    LAYERS,
    Conv2d,
    CrossEntropyLoss,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    MaxUnpool2d,
    Pad2d,
    ReLU,
    Sequential,
    Tanh,
    Trace,
    Unflatten,
)
from cae_raw.layers.fused import Fused
from cae_raw.models import MODELS, Autoencoder

Array = Any
Shape = tuple[int, ...]
Make = Callable[[np.random.Generator], Layer]


def _pool_and_unpool(*args: Any, **kwargs: Any) -> Layer:
    pool = MaxPool2d(*args, **kwargs)
    return Sequential(pool, MaxUnpool2d(pool))


# Per layer: how it is made, and the shape of a batch.
LAYER_CASES: dict[str, list[tuple[Make, Shape]]] = {
    "Conv2d": [
        (lambda rng: Conv2d(3, 4, 3, padding=1, rng=rng), (2, 3, 5, 7)),
        (lambda rng: Conv2d(5, 2, (2, 3), padding=(1, 3), rng=rng), (3, 5, 7, 4)),
        (lambda rng: Conv2d(2, 3, (3, 1), stride=(2, 3), padding=(2, 0), rng=rng), (2, 2, 6, 5)),
        (lambda rng: Conv2d(4, 1, (5, 3), stride=2, padding=1, rng=rng), (1, 4, 3, 7)),
        (lambda rng: Conv2d(1, 1, 1, rng=rng), (1, 1, 1, 1)),
        (lambda rng: Sequential(Conv2d(3, 5, 3, rng=rng), Tanh()), (2, 3, 4, 5)),
        (lambda rng: Sequential(Conv2d(5, 3, 3, padding=2, rng=rng), ReLU()), (2, 5, 3, 4)),
    ],
    "MaxPool2d": [
        (lambda rng: MaxPool2d(2), (2, 3, 4, 6)),
        (lambda rng: MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0)), (1, 2, 5, 7)),
        (lambda rng: MaxPool2d((1, 3), stride=(2, 4)), (3, 1, 5, 8)),
    ],
    "MaxUnpool2d": [
        (lambda rng: _pool_and_unpool(2), (2, 3, 4, 6)),
        (lambda rng: _pool_and_unpool((2, 3), padding=(1, 1)), (1, 2, 5, 7)),
    ],
    "Linear": [
        (lambda rng: Linear(7, 5, rng=rng), (3, 7)),
        (lambda rng: Linear(1, 1, rng=rng), (1, 1)),
        (lambda rng: Sequential(Linear(3, 11, rng=rng), Tanh()), (5, 3)),
        (lambda rng: Sequential(Linear(11, 3, rng=rng), ReLU()), (4, 11)),
    ],
    "ReLU": [(lambda rng: ReLU(), (2, 3, 5, 7)), (lambda rng: ReLU(), (3, 11))],
    "Tanh": [(lambda rng: Tanh(), (2, 3, 5, 7)), (lambda rng: Tanh(), (3, 11))],
    "Flatten": [(lambda rng: Flatten(), (2, 3, 5, 4))],
    "Unflatten": [(lambda rng: Unflatten((3, 5, 4)), (2, 60))],
    "Pad2d": [
        (lambda rng: Pad2d((1, 0, 2, 3)), (2, 3, 5, 4)),
        (lambda rng: Pad2d(2), (1, 1, 1, 3)),
    ],
}

# Per model: the options it is built with, and the shape of a batch.
MODEL_CASES: dict[str, list[tuple[dict[str, Any], Shape]]] = {
    "single-layer": [
        ({"channels": 3, "filters": 8}, (2, 3, 7, 5)),
        ({"channels": 1, "filters": 32}, (3, 1, 6, 9)),
    ],
    "deep": [({"channels": 3, "size": (12, 13), "code_size": 7}, (2, 3, 12, 13))],
    "deep-same": [
        ({"channels": 1, "size": (7, 10), "code_size": 6}, (2, 1, 7, 10)),
        ({"channels": 3, "size": 8, "code_size": 5}, (2, 3, 8, 8)),
    ],
}


# Losses of labels: the layers before it, and the shape of a batch.
LOSS_CASES: dict[str, list[tuple[Make, Shape]]] = {
    "CrossEntropyLoss": [
        (lambda rng: Linear(7, 5, rng=rng), (6, 7)),
        (lambda rng: Sequential(Linear(3, 4, rng=rng), Tanh(), Linear(4, 11, rng=rng)), (2, 3)),
    ],
}


@dataclass(frozen=True)
class Configuration:
    """What is checked: its registered name, how it is made, the shape of a batch.

    `loss`, if any, is taken of the layers' output and of `labels`.
    """

    name: str
    make: Make
    shape: Shape
    seed: int = 0
    loss: CrossEntropyLoss | None = None

    def build(self) -> Sequential:
        """A stack with this layer in it, or the model; always with the same parameters."""
        layer = self.make(self.rng())
        return layer if isinstance(layer, Sequential) else Sequential(layer)

    def rng(self, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])

    def draw(self, rng: np.random.Generator) -> Array:
        """A float64 batch of evenly spaced values in (-1, 1) in random order: no ties, no 0."""
        size = prod(self.shape)
        values = (np.arange(size) + 0.7) / max(1, size) * 2 - 1
        return rng.permutation(values).reshape(self.shape)

    @property
    def labels(self) -> np.ndarray:
        """A class for each row of the output, int64 (N,)."""
        n, classes = (self.shape[0], *self.build().output_shape(self.shape[1:]))
        return self.rng(4).integers(0, classes, n)

    def __str__(self) -> str:
        stack = self.build()
        if isinstance(stack, Autoencoder):
            return f"{stack.options} on {self.shape}"
        parts = [*stack.stack, self.loss] if self.loss else stack.stack
        return f"{' -> '.join(map(repr, parts))} on {self.shape}"


def configurations(name: str) -> list[Configuration]:
    """Those of a registered layer, model or loss.

    Raises:
        InputError: if it has none; an empty list would pass for a success.
    """
    if name in LAYERS:
        table, makes = "LAYER_CASES", LAYER_CASES.get(name, [])
    elif name in LOSS_CASES:
        table, makes = "LOSS_CASES", LOSS_CASES[name]
    else:
        table = "MODEL_CASES"
        makes = [(_maker(name, options), shape) for options, shape in MODEL_CASES.get(name, [])]
    if not makes:
        raise InputError(f"{name} has no configuration: add one to cae_raw.gradcheck.cases.{table}")
    loss = CrossEntropyLoss() if name in LOSS_CASES else None
    return [
        Configuration(name, make, shape, seed, loss) for seed, (make, shape) in enumerate(makes)
    ]


def _maker(name: str, options: dict[str, Any]) -> Make:
    def make(rng: np.random.Generator) -> Layer:
        return MODELS[name](**options, rng=rng)

    return make


def run_both_ways(
    stack: Sequential,
    x: Array,
    dy: Array,
    trace: Trace,
    backend: Backend = NUMPY,
    fused: bool = False,
) -> dict[str, Array]:
    """Output, input gradient and parameter gradients, under "output", "input" and their names.

    The parameter gradients are NaN before the backward pass, which must overwrite them.
    """
    layers = Fused(stack) if fused else stack
    y = layers.forward(backend.asarray(x), trace)
    poison = np.full(stack.parameters.shape, np.nan, x.dtype)
    gradients = stack.split(backend.asarray(poison))
    dx = layers.backward(backend.asarray(dy), trace, gradients)
    return {"output": y, "input": dx, **gradients}


def ways(stack: Sequential) -> list[bool]:
    """`fused` of `run_both_ways`: both, where runs of the stack's layers can be fused."""
    return [False, True] if Fused(stack).fuses else [False]


def decisions(stack: Sequential, trace: Trace, backend: Backend = NUMPY) -> list[Array]:
    """What chose between branches in a forward pass: signs of ReLUs, maxima of poolings.

    And the signs of the code, where the trace has it under the model itself.
    """
    found = [backend.to_numpy(trace[stack]) > 0] if stack in trace else []
    for layer in stack.stack:
        if isinstance(layer, ReLU):
            found.append(backend.to_numpy(trace[layer]) > 0)
        elif isinstance(layer, MaxPool2d):
            found.append(backend.to_numpy(trace[layer][0]))
    return found


def same(first: list[Array], second: list[Array]) -> bool:
    """True when two lists of decisions agree."""
    return all(map(np.array_equal, first, second))


def label(stack: Sequential, what: str) -> str:
    """A parameter's name, without its position where there is only one layer."""
    return what.removeprefix("0.") if len(stack.stack) == 1 else what
