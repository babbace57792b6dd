"""Activation layers: elementwise, any shape, no parameters."""

from __future__ import annotations

from typing import Any

from cae_raw.layers.base import Array, Gradients, Layer, Trace, check_gradient
from cae_raw.ops import Op, activation


class Activation(Layer):
    """An elementwise function whose gradient needs only its output.

    A convolution or linear layer right before it computes it in the same pass; see `Sequential`.
    """

    kind: str
    _forward: Op[Any, Array]
    _backward: Op[Any, Array]

    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        y = self._forward(x)
        if trace is not None:
            trace[self] = y
        return y

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        check_gradient(self, dy, trace[self].shape)
        return self._backward(dy, trace[self]) if need_dx else None


class ReLU(Activation):
    """max(x, 0)."""

    kind = "relu"
    _forward = activation.relu_forward
    _backward = activation.relu_backward


class Tanh(Activation):
    """tanh(x), in [-1, 1]."""

    kind = "tanh"
    _forward = activation.tanh_forward
    _backward = activation.tanh_backward
