"""The contract of a layer: it keeps parameters, never activations.

`forward` leaves what the backward pass will need in a trace, `backward` reads it from there. The
memory of a step is therefore one explicit object, and two threads can run one model on two parts of
a batch at the same time, each with its own trace.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from cae_raw.backends import Backend
from cae_raw.errors import InputError
from cae_raw.layers import initial
from cae_raw.ops.windows import Pair, output_size

Array = Any
Shape = tuple[int, ...]
Trace = dict["Layer", Any]
Gradients = dict[str, Array]
Self = TypeVar("Self", bound="Layer")


class Layer(ABC):
    """A step of a model, with its parameters in `params` (name -> array)."""

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of one output for one input of `shape`, both without the batch axis.

        Raises:
            InputError: if this layer cannot take such an input.
        """
        return shape

    @abstractmethod
    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        """The output for a batch x; with a trace, also what `backward` will need."""

    @abstractmethod
    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        """The gradient of the input, given that of the output.

        Args:
            dy: gradient of the output, of the output's shape.
            trace: the one that `forward` filled.
            grads: receives the gradient of each parameter under its name. An array that is
                already there is overwritten, never added to.
            need_dx: False where nobody wants the input's gradient; None is returned then.
        """

    def __call__(self, x: Array) -> Array:
        """`forward` without a trace."""
        return self.forward(x)

    def layers(self) -> Iterator[Layer]:
        """This layer, or the layers it is made of, in order."""
        yield self

    def flops(self, shape: Shape) -> int:
        """Multiplications and additions of one forward pass over one input of `shape`."""
        return int(np.prod(self.output_shape(shape)))

    def to(self: Self, backend: Backend) -> Self:
        """Move the parameters from the host to a backend, in place; returns the layer."""
        self.params = {k: backend.asarray(np.asarray(v)) for k, v in self.params.items()}
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class AffineLayer(Layer):
    """A layer with a weight (outputs first) and a bias: y = W x + b in some arrangement."""

    def __init__(
        self,
        weight_shape: Shape,
        rng: np.random.Generator | None,
        init: str,
    ) -> None:
        super().__init__()
        rng = np.random.default_rng() if rng is None else rng
        self.params["weight"], self.params["bias"] = initial.values(init, weight_shape, rng)

    @abstractmethod
    def forward(
        self, x: Array, trace: Trace | None = None, *, activation: str | None = None
    ) -> Array:
        """The output; `activation`, if any, is applied in the same pass over it."""

    @property
    def weight(self) -> Array:
        return self.params["weight"]

    @property
    def bias(self) -> Array:
        return self.params["bias"]


def check_gradient(layer: Layer, dy: Array, shape: Shape) -> None:
    """Refuse an output gradient that does not have the output's shape.

    Raises:
        InputError: NumPy would broadcast some wrong shapes and a kernel would read past the end.
    """
    if tuple(dy.shape) != tuple(shape):
        raise InputError(
            f"{layer}: the output's gradient has shape {tuple(dy.shape)}, "
            f"the output had {tuple(shape)}"
        )


def pair(value: int | tuple[int, int], name: str, at_least: int = 1) -> tuple[int, int]:
    """An int or a (height, width) pair as a pair of ints.

    Raises:
        InputError: if it is neither, or smaller than `at_least`.
    """
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(isinstance(v, (int, np.integer)) for v in both):
        raise InputError(f"{name} must be a whole number or a (height, width) pair, not {value!r}")
    if min(both) < at_least:
        raise InputError(f"{name} must be at least {at_least}, not {value!r}")
    return int(both[0]), int(both[1])


def image_shape(layer: Layer, shape: Shape, channels: int | None = None) -> tuple[int, int, int]:
    """`shape` as (C, H, W).

    Raises:
        InputError: if it is something else, is empty, or has other than `channels` channels.
    """
    if len(shape) != 3:
        raise InputError(f"{layer} takes images of shape (C, H, W), not {shape}")
    if channels is not None and shape[0] != channels:
        raise InputError(f"{layer} takes {channels} channels, the input has {shape[0]}")
    if min(shape) < 1:
        raise InputError(f"{layer} takes images of at least one pixel, not {shape}")
    return int(shape[0]), int(shape[1]), int(shape[2])


def count_windows(
    layer: Layer, size: Pair, kernel_size: Pair, stride: Pair, padding: Pair
) -> tuple[int, int]:
    """(OH, OW): the window positions of a layer over a map of `size` (H, W).

    Raises:
        InputError: naming the layer, if its window is larger than the padded map.
    """
    try:
        oh = output_size(size[0], kernel_size[0], stride[0], padding[0])
        return oh, output_size(size[1], kernel_size[1], stride[1], padding[1])
    except InputError as error:
        raise InputError(f"{layer}: {error}") from None
