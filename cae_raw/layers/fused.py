"""Runs of layers computed in one pass, which is how a GPU goes through a stack.

    Conv2d, ReLU, MaxPool2d           the map between convolution and pooling is never in memory
    MaxUnpool2d, Conv2d, ReLU         nor is the one between unpooling and convolution
    ReLU | Conv2d                     the ReLU's derivative is taken where its gradient is made

The ReLU may be missing, and in the first two it may be a Tanh. Pooling is over 2x2 side by side,
and layers in no such run are computed as `Sequential` does it. Parameters, results and gradients
are those of the layers; so is the trace, except that it holds an activation's output as it is after
the pooling, and a convolution's input as it is before the unpooling. `Sequential` is the version to
read first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cae_raw.layers.activation import Activation, ReLU, Tanh
from cae_raw.layers.base import Array, Gradients, Layer, Trace
from cae_raw.layers.conv2d import Conv2d
from cae_raw.layers.pool2d import MaxPool2d, MaxUnpool2d
from cae_raw.layers.sequential import Sequential
from cae_raw.ops import conv2d, conv2d_pool, unpool_conv2d

L = TypeVar("L", bound=Layer)


@dataclass
class ConvBlock:
    """A convolution with what stands around it.

    Args:
        position: of the convolution in its stack; its gradients are named by it.
        unpool: in front of it, or `pool` behind it; never both.
        takes_derivative: the input is a ReLU's output, and `backward` returns the gradient of what
            went into that ReLU.
        leaves_derivative: the next block does so for this one's ReLU.
    """

    position: int
    conv: Conv2d
    activation: Activation | None = None
    pool: MaxPool2d | None = None
    unpool: MaxUnpool2d | None = None
    takes_derivative: bool = False
    leaves_derivative: bool = False

    @property
    def layers(self) -> list[Layer]:
        parts = (self.unpool, self.conv, self.activation, self.pool)
        return [layer for layer in parts if layer is not None]

    @property
    def has_parameters(self) -> bool:
        return True

    @property
    def kernel_file(self) -> str:
        """The stem of the file in kernels/ with this block's kernels."""
        if self.unpool is not None:
            return "unpool_conv2d"
        return "conv2d" if self.pool is None else "conv2d_pool"

    @property
    def _window(self) -> dict[str, Any]:
        return {"stride": self.conv.stride, "padding": self.conv.padding}

    def forward(self, x: Array, trace: Trace) -> Array:
        conv = self.conv
        made = {**self._window, "activation": self.activation and self.activation.kind}
        trace[conv] = x
        if self.unpool is not None:
            mask, shape = self.unpool.selection(x, trace)
            conv.output_shape(shape[1:])
            y = unpool_conv2d.unpool_conv2d_forward(
                x, mask, conv.weight, conv.bias, size=shape[2:], **made
            )
        elif self.pool is not None:
            made_of = conv.output_shape(x.shape[1:])
            self.pool.output_shape(made_of)
            y, mask = conv2d_pool.conv2d_pool_forward(x, conv.weight, conv.bias, **made)
            trace[self.pool] = (mask, (len(x), *made_of))
        else:
            conv.output_shape(x.shape[1:])
            y = conv2d.conv2d_forward(x, conv.weight, conv.bias, **made)
        if self.activation is not None:
            trace[self.activation] = y
        return y

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None, need_dx: bool
    ) -> Array | None:
        if self.activation is not None and not self.leaves_derivative:
            dy = self.activation.backward(dy, trace)
        if grads is not None:
            weight, bias = f"{self.position}.weight", f"{self.position}.bias"
            grads[weight] = self._weight_gradient(dy, trace, grads.get(weight))
            # What pooling left out has no gradient, so the sum over the rest is all of it.
            grads[bias] = conv2d.conv2d_backward_bias(dy, out=grads.get(bias))
        return self._input_gradient(dy, trace) if need_dx else None

    def _weight_gradient(self, dy: Array, trace: Trace, out: Array | None) -> Array:
        x = trace[self.conv]
        given = {**self._window, "kernel_size": self.conv.kernel_size, "out": out}
        if self.unpool is not None:
            mask, shape = trace[self.unpool.pool]
            return unpool_conv2d.unpool_conv2d_backward_weight(dy, x, mask, size=shape[2:], **given)
        if self.pool is not None:
            return conv2d_pool.conv2d_pool_backward_weight(dy, trace[self.pool][0], x, **given)
        return conv2d.conv2d_backward_weight(dy, x, **given)

    def _input_gradient(self, dy: Array, trace: Trace) -> Array:
        x, w = trace[self.conv], self.conv.weight
        given = {**self._window, "gate": x if self.takes_derivative else None}
        if self.unpool is not None:
            mask, shape = trace[self.unpool.pool]
            return unpool_conv2d.unpool_conv2d_backward_input(dy, mask, w, size=shape[2:], **given)
        given["input_size"] = x.shape[2:]
        if self.pool is not None:
            return conv2d_pool.conv2d_pool_backward_input(dy, trace[self.pool][0], w, **given)
        return conv2d.conv2d_backward_input(dy, w, **given)


@dataclass
class SingleLayers:
    """Layers start to until (not included) of a model, one by one."""

    model: Sequential
    start: int
    until: int

    @property
    def layers(self) -> list[Layer]:
        return self.model.stack[self.start : self.until]

    @property
    def has_parameters(self) -> bool:
        return any(layer.params for layer in self.layers)

    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        return self.model.forward(x, trace, start=self.start, until=self.until)

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, need_dx: bool = True
    ) -> Array | None:
        return self.model.backward(
            dy, trace, grads, need_dx=need_dx, start=self.start, until=self.until
        )


class Fused:
    """A model's layers, or a range of them, in as few passes as there are kernels for.

    Args:
        model: whose layers these are; its parameters are used as they are at each call.
        start, until: as for `Sequential.forward`.
    """

    def __init__(self, model: Sequential, start: int = 0, until: int | None = None) -> None:
        self.parts = list(_parts(model, start, len(model.stack) if until is None else until))
        for first, second in zip(self.parts, self.parts[1:], strict=False):
            if isinstance(first, ConvBlock) and isinstance(second, ConvBlock):
                of_relu = isinstance(first.activation, ReLU)
                first.leaves_derivative = second.takes_derivative = of_relu

    @property
    def fuses(self) -> bool:
        """Whether anything is done otherwise than layer by layer."""
        blocks = [part for part in self.parts if isinstance(part, ConvBlock)]
        return any(b.pool or b.unpool or b.takes_derivative for b in blocks)

    def forward(self, x: Array, trace: Trace | None = None) -> Array:
        """As `Sequential.forward`."""
        trace = {} if trace is None else trace
        for part in self.parts:
            x = part.forward(x, trace)
        return x

    def backward(
        self, dy: Array, trace: Trace, grads: Gradients | None = None, *, need_dx: bool = True
    ) -> Array | None:
        """As `Sequential.backward`, with a trace that `forward` of this object filled."""
        first = next((i for i, part in enumerate(self.parts) if part.has_parameters), 0)
        for i, part in reversed(list(enumerate(self.parts))):
            wanted = need_dx or i > first
            gradient = part.backward(dy, trace, grads, wanted)
            if not wanted and i <= first:
                return None
            dy = gradient
        return dy


def _parts(model: Sequential, start: int, until: int) -> Iterator[ConvBlock | SingleLayers]:
    """The layers from start to until (not included), cut into runs."""
    stack = model.stack[:until]
    single, i = start, start
    while i < until:
        block = _block(stack, i)
        if block is None:
            i += 1
            continue
        if single < i:
            yield SingleLayers(model, single, i)
        yield block
        single = i = i + len(block.layers)
    if single < until:
        yield SingleLayers(model, single, until)


def _block(stack: list[Layer], i: int) -> ConvBlock | None:
    """The run that begins with layer i, if one does."""

    def take(kind: type[L]) -> L | None:
        nonlocal i
        layer = stack[i] if i < len(stack) else None
        # Layers made of these may compute something else; and poolings have to be the simple one.
        if type(layer) is not kind or not _is_simple(layer):
            return None
        i += 1
        return layer

    unpool = take(MaxUnpool2d)
    position, conv = i, take(Conv2d)
    if conv is None:
        return None
    activation = take(ReLU) or take(Tanh)
    pool = None if unpool is not None else take(MaxPool2d)
    return ConvBlock(position, conv, activation, pool, unpool)


def _is_simple(layer: Layer) -> bool:
    pool = layer.pool if isinstance(layer, MaxUnpool2d) else layer
    return not isinstance(pool, MaxPool2d) or pool.window == conv2d_pool.WINDOW
