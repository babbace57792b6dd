"""The reconstruction loss."""

from __future__ import annotations

from math import prod

from cae_raw.errors import InputError, unknown_name
from cae_raw.layers.base import Array
from cae_raw.ops.loss import squared_error

# What the sum of squared errors is multiplied by, before it is divided by the element count.
LOSSES: dict[str, float] = {"half_mse": 0.5, "mse": 1.0}


class MSELoss:
    """Mean squared error over all elements, or half of it.

    Args:
        kind: "mse" for mean((y - t)^2), "half_mse" for half of that.

    Raises:
        InputError: for another kind.
    """

    def __init__(self, kind: str = "mse") -> None:
        if kind not in LOSSES:
            raise unknown_name("loss", kind, LOSSES)
        self.kind = kind

    def forward(self, y: Array, target: Array) -> tuple[float, Array]:
        """(value, dy): the loss and its gradient with respect to y; both arrays of one shape."""
        total, dy = self.partial(y, target, prod(y.shape))
        return float(total[0]) * LOSSES[self.kind] / max(1, prod(y.shape)), dy

    def partial(self, y: Array, target: Array, elements: int) -> tuple[Array, Array]:
        """The same for a part of a batch that has `elements` elements in all.

        Returns (total, dy): the part's sum of squared errors, of shape (1,), and its share of the
        gradient of the whole batch's loss.
        """
        if tuple(y.shape) != tuple(target.shape):
            raise InputError(f"output {tuple(y.shape)} and target {tuple(target.shape)} differ")
        return squared_error(y, target, scale=self.gradient_scale(elements))

    def gradient_scale(self, elements: int) -> float:
        """What y - t is multiplied by to give the gradient, for a batch of so many elements."""
        return 2 * LOSSES[self.kind] / max(1, elements)

    def __call__(self, y: Array, target: Array) -> tuple[float, Array]:
        return self.forward(y, target)

    def __repr__(self) -> str:
        return f"MSELoss({self.kind!r})"
