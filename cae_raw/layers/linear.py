"""The fully connected layer."""

from __future__ import annotations

import numpy as np

from cae_raw.errors import InputError
from cae_raw.layers.base import AffineLayer, Array, Gradients, Shape, Trace, check_gradient, pair
from cae_raw.ops import linear as ops


class Linear(AffineLayer):
    """y = x W^T + b: (N, in_features) to (N, out_features).

    Args:
        in_features, out_features: at least 1.
        rng, init: as for `Conv2d`.

    Parameters: weight (out_features, in_features), bias (out_features,).

    Attributes:
        precision: what its products make of their operands, a name in
            `cae_raw.ops.precision.PRECISIONS`.
    """

    precision: str = "float32"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rng: np.random.Generator | None = None,
        init: str = "uniform",
    ) -> None:
        self.out_features, self.in_features = pair((out_features, in_features), "features")
        super().__init__((self.out_features, self.in_features), rng, init)

    def output_shape(self, shape: Shape) -> Shape:
        if tuple(shape) != (self.in_features,):
            raise InputError(
                f"{self} takes vectors of {self.in_features}, not {tuple(shape)}: "
                "a Flatten before it turns images into vectors"
            )
        return (self.out_features,)

    def forward(
        self, x: Array, trace: Trace | None = None, *, activation: str | None = None
    ) -> Array:
        self.output_shape(x.shape[1:])
        if trace is not None:
            trace[self] = x
        return ops.linear_forward(
            x, self.weight, self.bias, activation=activation, precision=self.precision
        )

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        check_gradient(self, dy, (len(trace[self]), self.out_features))
        if grads is not None:
            grads["weight"] = ops.linear_backward_weight(
                dy, trace[self], out=grads.get("weight"), precision=self.precision
            )
            grads["bias"] = ops.linear_backward_bias(dy, out=grads.get("bias"))
        if not need_dx:
            return None
        return ops.linear_backward_input(dy, self.weight, precision=self.precision)

    def flops(self, shape: Shape) -> int:
        return 2 * self.in_features * self.out_features

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features})"
