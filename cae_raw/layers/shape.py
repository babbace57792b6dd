"""Layers that move values without computing: padding, flattening and its inverse."""

from __future__ import annotations

from abc import abstractmethod
from math import prod

import numpy as np

from cae_raw.errors import InputError
from cae_raw.layers.base import Array, Gradients, Layer, Shape, Trace, check_gradient, image_shape
from cae_raw.ops import pad2d as ops


class Pad2d(Layer):
    """Zeros around each image: (N, C, H, W) to (N, C, H + top + bottom, W + left + right).

    Args:
        padding: one number for all sides, or (top, bottom, left, right); none negative.
    """

    def __init__(self, padding: int | tuple[int, int, int, int]) -> None:
        super().__init__()
        sides = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * 4
        whole = all(isinstance(side, (int, np.integer)) for side in sides)
        if len(sides) != 4 or not whole or min(sides) < 0:
            raise InputError(f"padding must be one number or four, none negative, not {padding!r}")
        self.borders = (sides[0], sides[1], sides[2], sides[3])

    def output_shape(self, shape: Shape) -> Shape:
        c, h, w = image_shape(self, shape)
        top, bottom, left, right = self.borders
        return (c, h + top + bottom, w + left + right)

    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        self.output_shape(x.shape[1:])
        if trace is not None:
            trace[self] = x.shape
        return ops.pad2d_forward(x, borders=self.borders)

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        n, *shape = trace[self]
        check_gradient(self, dy, (n, *self.output_shape(tuple(shape))))
        return ops.pad2d_backward(dy, borders=self.borders) if need_dx else None

    def flops(self, shape: Shape) -> int:
        return 0

    def __repr__(self) -> str:
        return f"Pad2d({self.borders})"


class Reshape(Layer):
    """Gives every example another shape over the same values."""

    @abstractmethod
    def target(self, shape: Shape) -> Shape:
        """The new shape for an example of `shape`."""

    def output_shape(self, shape: Shape) -> Shape:
        target = self.target(shape)
        if prod(target) != prod(shape):
            raise InputError(f"{self} cannot make {target} of {tuple(shape)}: sizes differ")
        return target

    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        y = x.reshape(x.shape[0], *self.output_shape(x.shape[1:]))
        if trace is not None:
            trace[self] = x.shape
        return y

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        n, *shape = trace[self]
        check_gradient(self, dy, (n, *self.output_shape(tuple(shape))))
        return dy.reshape(trace[self]) if need_dx else None

    def flops(self, shape: Shape) -> int:
        return 0


class Flatten(Reshape):
    """Images to vectors: (N, C, H, W) to (N, C*H*W)."""

    def target(self, shape: Shape) -> Shape:
        return (prod(shape),)


class Unflatten(Reshape):
    """Vectors to images: (N, C*H*W) to (N, *shape)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = tuple(int(s) for s in shape)

    def target(self, shape: Shape) -> Shape:
        return self.shape

    def __repr__(self) -> str:
        return f"Unflatten({self.shape})"
