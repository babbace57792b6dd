"""Awkward shapes for every layer: one row per case, and what PyTorch calls the same thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cae_raw.gradcheck.cases import Configuration
from cae_raw.layers import (
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    MaxUnpool2d,
    Pad2d,
    ReLU,
    Sequential,
    Tanh,
    Unflatten,
)

# N, C, H, W, O, kernel_size, stride, padding
CONV2D = [
    (1, 1, 1, 1, 1, 1, 1, 0),
    (2, 3, 5, 7, 4, 3, 1, 1),
    (2, 4, 7, 5, 3, 3, 1, 1),
    (2, 3, 7, 5, 2, (2, 3), 1, (1, 2)),
    (3, 2, 11, 13, 5, (3, 5), (2, 3), (1, 2)),
    (3, 5, 13, 11, 2, (5, 3), (3, 2), (2, 1)),
    (2, 4, 5, 8, 2, (3, 2), (1, 3), (1, 2)),  # a stride along one axis only, both ways
    (2, 4, 8, 5, 2, (2, 3), (3, 1), (2, 1)),
    (1, 2, 7, 9, 3, 2, 3, 0),  # stride > kernel
    (2, 3, 8, 6, 2, 1, (2, 3), 0),
    (1, 2, 4, 4, 3, (2, 3), (7, 5), 1),  # stride > map
    (1, 2, 3, 2, 3, 3, 1, 3),  # padding >= kernel: windows that see no pixel
    (1, 3, 2, 3, 2, 2, 1, (4, 3)),
    (2, 2, 2, 3, 3, 2, (3, 2), (4, 3)),
    (1, 2, 5, 7, 3, (5, 7), 1, 0),  # kernel as large as the map
    (2, 5, 5, 7, 3, (5, 7), 2, 0),
    (2, 7, 1, 1, 5, 3, 1, 1),  # map smaller than the kernel
    (5, 1, 1, 9, 2, (1, 3), 1, (0, 1)),
    (1, 2, 9, 1, 1, (3, 1), (4, 1), (1, 0)),
    (0, 3, 5, 7, 4, 3, 1, 1),  # empty batches
    (0, 4, 5, 7, 2, 3, 1, 1),
    (17, 1, 3, 3, 1, 3, 1, 1),
    (2, 3, 6, 5, 32, 3, 1, 2),  # the channel counts of the models
    (1, 32, 8, 7, 3, 3, 1, 0),
    (1, 1, 7, 6, 32, 3, 1, 2),
    (1, 12, 5, 9, 24, 3, 1, 1),
    (1, 24, 5, 6, 12, 3, 1, 2),
    (1, 24, 7, 7, 24, 5, 2, 2),
]
# N, C, H, W, kernel_size, stride, padding
MAXPOOL2D = [
    (2, 3, 4, 6, 2, 2, 0),
    (1, 1, 1, 1, 1, 1, 0),
    (2, 2, 5, 7, 2, 2, 0),  # a row and a column that no window covers
    (1, 2, 7, 5, 3, 1, 0),  # overlapping windows
    (1, 2, 7, 5, (3, 2), (2, 1), (1, 1)),
    (1, 3, 5, 5, 4, 3, 2),
    (2, 1, 9, 11, (2, 3), (3, 4), (1, 1)),  # stride > kernel
    (1, 2, 5, 3, (5, 3), 1, 0),  # kernel as large as the map
    (1, 1, 1, 2, 2, 2, 1),
    (2, 3, 5, 4, 1, 1, 0),
    (0, 3, 4, 6, 2, 2, 0),
    (1, 1, 17, 33, 16, 16, 0),  # 256 taps, all a byte can tell apart
    (3, 24, 4, 4, 2, 2, 0),
]
# N, C, H, W, kernel_size, padding
MAXUNPOOL2D = [
    (2, 3, 4, 6, 2, 0),
    (1, 2, 5, 7, 2, 0),
    (1, 2, 5, 7, (2, 3), (1, 1)),
    (2, 1, 3, 3, 1, 0),
    (1, 1, 1, 1, 2, 1),
    (0, 3, 4, 6, 2, 0),
    (3, 24, 4, 4, 2, 0),
]
# N, in_features, out_features
LINEAR = [(1, 1, 1), (3, 7, 5), (2, 1, 13), (5, 17, 1), (0, 4, 3), (31, 3, 2), (2, 96, 49)]
ANY_SHAPE = [(1, 1), (3, 7), (2, 3, 5, 7), (0, 3, 4, 6), (1, 1, 1, 1), (5, 32, 3, 1)]
# shape, (top, bottom, left, right)
PAD2D = [
    ((2, 3, 5, 4), (1, 0, 2, 3)),
    ((1, 1, 1, 1), (0, 0, 0, 0)),
    ((1, 2, 1, 3), (4, 4, 4, 4)),
    ((0, 2, 3, 3), (1, 1, 1, 1)),
]
IMAGES = [(2, 3, 5, 4), (1, 1, 1, 1), (0, 2, 3, 3), (3, 1, 7, 1)]

Torch = Callable[[Any, Any, dict[str, Any]], Any]  # functional module, x, parameters -> y


@dataclass(frozen=True)
class LayerCase:
    """A layer, the shape of a batch, and the same function in PyTorch."""

    name: str
    make: Callable[[np.random.Generator], Layer]
    shape: tuple[int, ...]
    torch: Torch

    @property
    def configuration(self) -> Configuration:
        return Configuration(self.name, self.make, self.shape)

    def __str__(self) -> str:
        parts = map(repr, self.make(np.random.default_rng(0)).layers())
        return f"{'->'.join(parts)} {self.shape}".replace(" ", "")


def _conv2d(n, c, h, w, o, kernel, stride, padding, follower=None, name=None) -> LayerCase:
    def make(rng):
        conv = Conv2d(c, o, kernel, stride, padding, rng=rng)
        return Sequential(conv, follower()) if follower else conv

    def torch(f, x, p):
        y = f.conv2d(x, p["0.weight"], p["0.bias"], stride, padding)
        return getattr(f, name)(y) if name else y

    return LayerCase("Conv2d", make, (n, c, h, w), torch)


def _maxpool2d(n, c, h, w, kernel, stride, padding) -> LayerCase:
    return LayerCase(
        "MaxPool2d",
        lambda rng: MaxPool2d(kernel, stride, padding),
        (n, c, h, w),
        lambda f, x, p: f.max_pool2d(x, kernel, stride, padding),
    )


def _maxunpool2d(n, c, h, w, kernel, padding) -> LayerCase:
    def make(rng):
        pool = MaxPool2d(kernel, padding=padding)
        return Sequential(pool, MaxUnpool2d(pool))

    def torch(f, x, p):
        y, indices = f.max_pool2d(x, kernel, kernel, padding, return_indices=True)
        return f.max_unpool2d(y, indices, kernel, kernel, padding, output_size=(h, w))

    return LayerCase("MaxUnpool2d", make, (n, c, h, w), torch)


def _linear(n, i, o, follower=None, name=None) -> LayerCase:
    def make(rng):
        linear = Linear(i, o, rng=rng)
        return Sequential(linear, follower()) if follower else linear

    def torch(f, x, p):
        y = f.linear(x, p["0.weight"], p["0.bias"])
        return getattr(f, name)(y) if name else y

    return LayerCase("Linear", make, (n, i), torch)


def _pad2d(shape, borders) -> LayerCase:
    top, bottom, left, right = borders
    return LayerCase(
        "Pad2d",
        lambda rng: Pad2d(borders),
        shape,
        lambda f, x, p: f.pad(x, (left, right, top, bottom)),
    )


def _unflatten(shape) -> LayerCase:
    flat = (shape[0], int(np.prod(shape[1:])))
    return LayerCase(
        "Unflatten", lambda rng: Unflatten(shape[1:]), flat, lambda f, x, p: x.reshape(shape)
    )


CASES = [
    *(_conv2d(*row) for row in CONV2D),
    _conv2d(2, 3, 5, 7, 4, 3, 1, 1, Tanh, "tanh"),
    _conv2d(2, 4, 5, 7, 3, 3, 1, 2, ReLU, "relu"),
    _conv2d(0, 4, 5, 7, 3, 3, 2, 2, Tanh, "tanh"),
    *(_maxpool2d(*row) for row in MAXPOOL2D),
    *(_maxunpool2d(*row) for row in MAXUNPOOL2D),
    *(_linear(*row) for row in LINEAR),
    _linear(3, 7, 5, Tanh, "tanh"),
    _linear(3, 5, 7, ReLU, "relu"),
    *(LayerCase("ReLU", lambda rng: ReLU(), s, lambda f, x, p: f.relu(x)) for s in ANY_SHAPE),
    *(LayerCase("Tanh", lambda rng: Tanh(), s, lambda f, x, p: x.tanh()) for s in ANY_SHAPE),
    *(_pad2d(*row) for row in PAD2D),
    *(LayerCase("Flatten", lambda rng: Flatten(), s, lambda f, x, p: x.flatten(1)) for s in IMAGES),
    *(_unflatten(s) for s in IMAGES),
]
