"""A stack of layers whose parameters live in one flat vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from cae_raw.backends import NUMPY, Backend
from cae_raw.errors import InputError
from cae_raw.layers.activation import Activation
from cae_raw.layers.base import AffineLayer, Array, Gradients, Layer, Shape, Trace
from cae_raw.layers.pool2d import MaxUnpool2d

Self = TypeVar("Self", bound="Sequential")


class Sequential(Layer):
    """Layers applied one after the other.

    `parameters` is one flat vector over all layers, which hold views of it: an optimizer step is
    one pass, a checkpoint one array. Parameters are named `<position>.<name>`, as in "0.weight".
    Layers belong to the last Sequential made of them; an earlier one must not be used on.

    Raises:
        InputError: if one layer object stands in the stack twice.
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.stack = [part for layer in layers for part in layer.layers()]
        if len(set(map(id, self.stack))) != len(self.stack):
            raise InputError("a layer object may stand in a Sequential only once: make another")
        self.names = [f"{i}.{name}" for i, layer in enumerate(self.stack) for name in layer.params]
        self.shapes = [p.shape for layer in self.stack for p in layer.params.values()]
        values = [p.ravel() for layer in self.stack for p in layer.params.values()]
        self._adopt(np.concatenate(values) if values else np.empty(0, np.float32), NUMPY)

    def _adopt(self, flat: Array, backend: Backend) -> None:
        """Make `flat` the parameters and every layer's parameters views of it."""
        self.parameters, self.backend = flat, backend
        self.params = self.split(flat)
        for i, layer in enumerate(self.stack):
            layer.params = {name: self.params[f"{i}.{name}"] for name in layer.params}

    def split(self, flat: Array) -> dict[str, Array]:
        """Views of a flat vector (P,), one per parameter, under its name and in its shape."""
        views, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = int(np.prod(shape))
            views[name] = flat[start : start + size].reshape(shape)
            start += size
        return views

    def layers(self) -> Iterator[Layer]:
        return iter(self.stack)

    def to(self: Self, backend: Backend) -> Self:
        self._adopt(backend.asarray(self.backend.to_numpy(self.parameters)), backend)
        return self

    def astype(self: Self, dtype: Any) -> Self:
        """Convert the parameters in place, for instance to float64 for a gradient check."""
        self._adopt(self.parameters.astype(dtype), self.backend)
        return self

    def move_parameters(self, flat: Array) -> Array:
        """Copy the parameters into `flat`, a vector like theirs, and hold them there from now on.

        Returns the vector that held them before.
        """
        before = self.parameters
        flat[...] = before
        self._adopt(flat, self.backend)
        return before

    def load_parameters(self, flat: np.ndarray) -> None:
        """Replace all parameters by a host vector (P,) of the same length."""
        if flat.shape != self.parameters.shape:
            raise InputError(f"{flat.size} parameters for a model of {self.parameters.size}")
        self._adopt(self.backend.asarray(flat.astype(self.parameters.dtype)), self.backend)

    def layer_shapes(self, shape: Shape) -> list[Shape]:
        """The input's shape and the output shape of each layer, all without the batch axis.

        Raises:
            InputError: if a layer cannot take what comes to it.
        """
        found, taken = [tuple(shape)], dict[Layer, Shape]()
        for layer in self.stack:
            taken[layer] = found[-1]
            if isinstance(layer, MaxUnpool2d) and layer.pool in taken:
                found.append(layer.restored_shape(found[-1], taken[layer.pool]))
            else:
                found.append(layer.output_shape(found[-1]))
        return found

    def output_shape(self, shape: Shape) -> Shape:
        return self.layer_shapes(shape)[-1]

    def flops(self, shape: Shape) -> int:
        return sum(
            layer.flops(s) for layer, s in zip(self.stack, self.layer_shapes(shape), strict=False)
        )

    def forward(
        self, x: Array, trace: Trace | None = None, *, start: int = 0, until: int | None = None
    ) -> Array:
        """The output for a batch x, of all layers or of a range: `start` inclusive, `until` not.

        An activation right behind a convolution or linear layer is computed with it, in one pass;
        nothing is lost by that, because its gradient needs only its output.
        """
        trace = {} if trace is None else trace  # unpooling reads it even when nobody else does
        stack = self.stack[start:until]
        i = 0
        while i < len(stack):
            layer, follower = stack[i], stack[i + 1] if i + 1 < len(stack) else None
            if isinstance(layer, AffineLayer) and isinstance(follower, Activation):
                x = layer.forward(x, trace, activation=follower.kind)
                trace[follower] = x
                i += 2
            else:
                x = layer.forward(x, trace)
                i += 1
        return x

    def backward(
        self,
        dy: Array,
        trace: Trace,
        grads: Gradients | None = None,
        *,
        need_dx: bool = True,
        start: int = 0,
        until: int | None = None,
    ) -> Array | None:
        """The input's gradient; `grads` receives those of the parameters, by their names here.

        `start` and `until` as in `forward`: dy belongs to the last layer of that range.
        """
        stack = list(enumerate(self.stack))[start:until]
        first = next((i for i, layer in stack if layer.params), start)
        for i, layer in reversed(stack):
            wanted = need_dx or i > first
            mine: Gradients | None = None
            if grads is not None:
                mine = {n: grads[f"{i}.{n}"] for n in layer.params if f"{i}.{n}" in grads}
            dy = layer.backward(dy, trace, mine, need_dx=wanted)
            if grads is not None and mine is not None:
                grads.update({f"{i}.{name}": value for name, value in mine.items()})
            if not wanted and i <= first:
                return None
        return dy

    def __repr__(self) -> str:
        return "Sequential(\n" + "".join(f"  {i}: {s}\n" for i, s in enumerate(self.stack)) + ")"
