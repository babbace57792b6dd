"""The convolution layer."""

from __future__ import annotations

import numpy as np

from cae_raw.layers.base import (
    AffineLayer,
    Array,
    Gradients,
    Shape,
    Trace,
    check_gradient,
    count_windows,
    image_shape,
    pair,
)
from cae_raw.ops import conv2d as ops


class Conv2d(AffineLayer):
    """Convolution of images: (N, in_channels, H, W) to (N, out_channels, OH, OW).

    Args:
        in_channels, out_channels: at least 1.
        kernel_size, stride, padding: ints or (height, width) pairs; padding adds zeros.
        rng: source of the initial weights; None draws from the operating system.
        init: a name in `initial.INITIALIZERS`.

    Parameters: weight (out_channels, in_channels, KH, KW), bias (out_channels,).

    Raises:
        InputError: for sizes below 1 (padding: below 0).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        rng: np.random.Generator | None = None,
        init: str = "uniform",
    ) -> None:
        self.out_channels, self.in_channels = pair((out_channels, in_channels), "channels")
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride = pair(stride, "stride")
        self.padding = pair(padding, "padding", at_least=0)
        super().__init__((self.out_channels, self.in_channels, *self.kernel_size), rng, init)

    def output_shape(self, shape: Shape) -> Shape:
        _, h, w = image_shape(self, shape, self.in_channels)
        oh, ow = count_windows(self, (h, w), self.kernel_size, self.stride, self.padding)
        return (self.out_channels, oh, ow)

    def forward(
        self, x: Array, trace: Trace | None = None, *, activation: str | None = None
    ) -> Array:
        self.output_shape(x.shape[1:])
        if trace is not None:
            trace[self] = x
        return ops.conv2d_forward(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            activation=activation,
        )

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        x = trace[self]
        check_gradient(self, dy, (len(x), *self.output_shape(x.shape[1:])))
        if grads is not None:
            grads["weight"] = ops.conv2d_backward_weight(
                dy,
                x,
                kernel_size=self.kernel_size,
                stride=self.stride,
                padding=self.padding,
                out=grads.get("weight"),
            )
            grads["bias"] = ops.conv2d_backward_bias(dy, out=grads.get("bias"))
        if not need_dx:
            return None
        return ops.conv2d_backward_input(
            dy, self.weight, input_size=x.shape[2:], stride=self.stride, padding=self.padding
        )

    def flops(self, shape: Shape) -> int:
        _, oh, ow = self.output_shape(shape)
        return 2 * int(np.prod(self.weight.shape)) * oh * ow

    def __repr__(self) -> str:
        return (
            f"Conv2d({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding})"
        )
