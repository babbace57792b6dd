"""The convolutional halves of a staged model, a few images at a time, in buffers made once.

    encode             images --[conv, ReLU]*, pool, [conv, ReLU]*, pool--> features
    decode             features --unpool, [conv, ReLU]*, unpool, [conv, ReLU]*--> output, error,
                       and back again to the features' gradient
    encoder_gradients  the gradient of the encoder's features --back--> nothing further

It computes what the layers compute, to rounding; it exists because it is faster: 1,540 us of one
thread for an image of 3x64x64 instead of 2,350, of which 570 are the floor of the convolutions'
operations. Maps stand in planes with zeros around (see `planes`), so that nothing is padded or
allocated on the way from one layer to the next, and what the layers do in passes of their own goes
with another: the bias is a row of the product, the masks of a pooling are places that unpooling and
both gradients use as they are, ReLU's gradient before a pooling is taken where the maxima are.

The larger the images the more it gains, 10 % less time at 16x16, 30 % at 96x96, half at 256x256.

What did not pay: pooling a few channels at a time (5 to 40 % more time for the encoder), bands of
rows whose copies take 200 KB (1 to 10 % more in all).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cae_raw.data.scaling import to_floats
from cae_raw.layers import Conv2d, Flatten, Layer, MaxPool2d, MaxUnpool2d, ReLU, Unflatten
from cae_raw.models import Autoencoder
from cae_raw.ops.planes import Convolver, Level, Planes, whole_lines
from cae_raw.ops.planes_pool import PlanesPool, put, take
from cae_raw.ops.windows import even_cuts

Array = Any
Shape = tuple[int, ...]

IMAGES = 4  # at most per pass; two take 3 % more time, eight 7 %, near what can be measured
PASS_BYTES = 2_400_000  # of all shifted copies of a pass, if there were room for all at a time


@dataclass(frozen=True)
class _Conv:
    """A convolution of 3x3, stride 1, and whether ReLU follows."""

    name: str  # its number in the model
    border: int  # padding
    relu: bool
    shape: Shape  # (C, H, W) of its input
    out_shape: Shape


@dataclass(frozen=True)
class Plan:
    """Convolutions by level, which is what lies between two poolings, from the images inwards."""

    encoder: tuple[tuple[_Conv, ...], ...]
    decoder: tuple[tuple[_Conv, ...], ...]
    features: Shape
    dtype: Any

    def level(self, k: int, n: int) -> Level:
        convs = (*self.encoder[k], *self.decoder[k])
        maps = [shape for conv in convs for shape in (conv.shape, conv.out_shape)]
        pitch = max(
            *(conv.shape[2] + conv.border for conv in convs),
            *(whole_lines(shape[2], self.dtype) for shape in maps),
        )
        return Level(n, max(shape[1] for shape in maps), pitch, self.dtype)

    @property
    def copies(self) -> int:
        """Bytes of the most that a convolution copies of an image."""
        return max(
            3 * conv.shape[0] * level.height * level.pitch * level.dtype.itemsize
            for k in range(len(self.encoder))
            for level in [self.level(k, 0)]
            for conv in (*self.encoder[k], *self.decoder[k])
        )

    @property
    def images(self) -> int:
        """So many go through together."""
        return max(1, min(IMAGES, PASS_BYTES // self.copies))


def plan(model: Autoencoder, image_shape: Shape, first: int, end: int) -> Plan | None:
    """For a model with linear layers from `first` to `end`; None if this is not the way for it."""
    shapes = model.layer_shapes(image_shape)
    encoder, decoder = model.stack[:first], model.stack[end:]
    if not encoder or not isinstance(encoder[-1], Flatten):
        return None
    if not decoder or not isinstance(decoder[0], Unflatten):
        return None
    down = _levels(encoder[:-1], shapes, 0)
    up = _levels(decoder[:0:-1], shapes, end + 1, backwards=True)
    if down is None or up is None or down[1] != up[1]:
        return None
    planned = Plan(down[0], up[0], tuple(shapes[first - 1]), model.parameters.dtype)
    return None if planned.decoder[0][-1].relu else planned


def _levels(
    layers: Any, shapes: list[Shape], start: int, *, backwards: bool = False
) -> tuple[tuple[tuple[_Conv, ...], ...], list[Layer]] | None:
    """The convolutions of each level, in the order of the forward pass, and the pooling layers.

    `layers` begin at the images: a decoder's are given backwards.
    """
    levels: list[tuple[_Conv, ...]] = []
    pools: list[Layer] = []
    convs: list[_Conv] = []
    numbers = range(start, start + len(layers))
    kinds = MaxUnpool2d if backwards else MaxPool2d
    for place, layer in enumerate(layers):
        i = numbers[-1 - place] if backwards else numbers[place]
        before = layers[place - 1] if place else None
        if isinstance(layer, Conv2d):
            if layer.kernel_size != (3, 3) or layer.stride != (1, 1):
                return None
            if layer.padding not in ((0, 0), (1, 1), (2, 2)):
                return None
            after = before if backwards else layers[place + 1] if place + 1 < len(layers) else None
            follows = isinstance(after, ReLU)
            convs.append(
                _Conv(str(i), layer.padding[0], follows, tuple(shapes[i]), tuple(shapes[i + 1]))
            )
        elif isinstance(layer, ReLU):
            neighbour = layers[place + 1] if backwards and place + 1 < len(layers) else before
            if not isinstance(neighbour, Conv2d):
                return None
        elif isinstance(layer, kinds):
            pool = layer.pool if isinstance(layer, MaxUnpool2d) else layer
            window = pool.kernel_size, pool.stride, pool.padding
            if window != ((2, 2), (2, 2), (0, 0)) or not convs:
                return None
            levels.append(tuple(reversed(convs)) if backwards else tuple(convs))
            pools.append(pool)
            convs = []
        else:
            return None
    return None if convs or not levels else (tuple(levels), pools)


class _Kept:
    """What the encoder leaves for later, of n images: inputs of its convolutions, and masks."""

    def __init__(self, plan: Plan, levels: list[Level]) -> None:
        self.maps = [
            [Planes(level, *conv.shape) for conv in convs]
            for level, convs in zip(levels, plan.encoder, strict=True)
        ]
        self.where = []
        for level, convs in zip(levels, plan.encoder, strict=True):
            c, h, w = convs[-1].out_shape
            self.where.append(np.empty((level.n, c, h // 2, w // 2), np.intp))


class _Buffers:
    """What a pass over n images needs besides, for one thread."""

    def __init__(self, plan: Plan, n: int) -> None:
        self.plan = plan
        self.levels = [plan.level(k, n) for k in range(len(plan.encoder))]
        self.convolvers = [Convolver(level) for level in self.levels]
        self.pooled_maps = [
            Planes(level, *convs[-1].out_shape)
            for level, convs in zip(self.levels, plan.encoder, strict=True)
        ]
        self.pools = [PlanesPool(maps) for maps in self.pooled_maps]
        self.decoder = [
            [Planes(level, *shape) for shape in (*(c.shape for c in convs), convs[-1].out_shape)]
            for level, convs in zip(self.levels, plan.decoder, strict=True)
        ]
        self._gradients: dict[Any, Planes] = {}
        self.values = [np.empty((n, *pool.shape[1:]), plan.dtype) for pool in self.pools]
        self.wide = np.empty(self.decoder[0][-1].rows.shape)  # float64: sums keep their digits

    def gradient(self, k: int, shape: Shape, other: Planes | None) -> Planes:
        """Planes of level k for a gradient, not those of `other`."""
        for place in range(2):
            key = k, shape, place
            if key not in self._gradients:
                self._gradients[key] = Planes(self.levels[k], *shape)
            if self._gradients[key] is not other:
                break
        return self._gradients[key]


class _Weights:
    """The parameters in the arrangement of the products, and sums of their gradients."""

    def __init__(self, plan: Plan) -> None:
        self.convs = [c for side in (plan.encoder, plan.decoder) for convs in side for c in convs]
        self.forward, self.backward, self.sums, self.bias = {}, {}, {}, {}
        for conv in self.convs:
            c, o = conv.shape[0], conv.out_shape[0]
            self.forward[conv.name] = np.zeros((3, 3 * c + 1, o), plan.dtype)
            self.backward[conv.name] = np.zeros((3, 3 * o + 1, c), plan.dtype)
            few, many = sorted((c, o))
            self.sums[conv.name] = np.zeros((3, 3 * few, many), plan.dtype)
            self.bias[conv.name] = np.zeros(o, plan.dtype)

    def load(self, params: Mapping[str, Array]) -> None:
        for conv in self.convs:
            w, name = params[f"{conv.name}.weight"], conv.name
            o, c = w.shape[:2]
            forward, backward = self.forward[name], self.backward[name]
            forward[:, :-1].reshape(3, 3, c, o)[...] = w.transpose(2, 3, 1, 0)
            forward[0, -1] = params[f"{name}.bias"]
            backward[:, :-1].reshape(3, 3, o, c)[...] = w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)

    def clear(self) -> None:
        for sums in (*self.sums.values(), *self.bias.values()):
            sums.fill(0)

    def apply(self, by: Convolver, conv: _Conv, x: Planes, y: Planes) -> None:
        matrix = self.forward[conv.name]
        by.correlate(x, matrix.reshape(-1, matrix.shape[2]), conv.border, y)
        if conv.relu:
            y.relu()

    def add_gradients(self, by: Convolver, conv: _Conv, x: Planes, dy: Planes) -> None:
        if x.channels <= dy.channels:
            self.sums[conv.name] += by.outer(x, conv.border, dy)
        else:
            self.sums[conv.name] += by.outer(dy, 2 - conv.border, x)
        self.bias[conv.name] += dy.sums()

    def back(self, by: Convolver, conv: _Conv, dy: Planes, dx: Planes) -> None:
        matrix = self.backward[conv.name]
        by.correlate(dy, matrix.reshape(-1, matrix.shape[2]), 2 - conv.border, dx)

    def store(self, convs: Iterator[_Conv], grads: Mapping[str, Array]) -> None:
        for conv in convs:
            c, o = conv.shape[0], conv.out_shape[0]
            sums, dw = self.sums[conv.name], grads[f"{conv.name}.weight"]
            if c <= o:
                dw[...] = sums.reshape(3, c, 3, o).transpose(3, 1, 0, 2)
            else:
                dw[...] = sums.reshape(3, o, 3, c)[::-1, :, ::-1].transpose(1, 3, 0, 2)
            grads[f"{conv.name}.bias"][...] = self.bias[conv.name]


class FusedStages:
    """The stages of a chunk; one object serves any number of threads."""

    def __init__(self, plan: Plan, model: Autoencoder) -> None:
        self.plan, self.model, self.images = plan, model, plan.images
        self._of_thread = threading.local()
        self._free: dict[int, list[_Kept]] = {n: [] for n in range(1, self.images + 1)}

    def _begin(self) -> _Weights:
        """This thread's weights, as the parameters are now."""
        own = self._of_thread.__dict__
        if "weights" not in own:
            own["weights"], own["buffers"] = _Weights(self.plan), {}
        weights: _Weights = own["weights"]
        weights.load(self.model.params)  # which may have moved
        weights.clear()
        return weights

    def _buffers(self, n: int) -> _Buffers:
        made: dict[int, _Buffers] = self._of_thread.buffers
        if n not in made:
            made[n] = _Buffers(self.plan, n)
        return made[n]

    def _maps(self, rows: Array) -> Array:
        """Rows of features as maps (N, C, H, W)."""
        return rows.reshape(len(rows), *self.plan.features)

    def encode(self, images: Array, features: Array) -> list[_Kept]:
        """Fill features (N, F) for images (N, C, H, W), uint8; returns what the others need."""
        weights, kept = self._begin(), []
        for part in even_cuts(len(images), self.images):
            n = part.stop - part.start
            buffers = self._buffers(n)
            try:
                kept.append(self._free[n].pop())
            except IndexError:
                kept.append(_Kept(self.plan, buffers.levels))
            x = to_floats(images[part], self.model.value_range)
            np.copyto(kept[-1].maps[0][0].content, x)
            self._encode(kept[-1], buffers, weights, self._maps(features[part]))
        return kept

    def _encode(self, kept: _Kept, buffers: _Buffers, weights: _Weights, features: Array) -> None:
        for k, convs in enumerate(self.plan.encoder):
            chain = [*kept.maps[k], buffers.pooled_maps[k]]
            for conv, x, y in zip(convs, chain, chain[1:], strict=False):
                weights.apply(buffers.convolvers[k], conv, x, y)
            last = k + 1 == len(self.plan.encoder)
            out = features if last else kept.maps[k + 1][0].content
            buffers.pools[k].forward(chain[-1], out, kept.where[k])

    def release(self, kept: list[_Kept]) -> None:
        """The encoder's leavings are needed no more."""
        for each in kept:
            self._free[each.where[0].shape[0]].append(each)

    def decode(
        self,
        values: Array,
        kept: list[_Kept],
        scale: float = 0,
        dvalues: Array | None = None,
        grads: Mapping[str, Array] | None = None,
    ) -> float:
        """The sum of squared errors for the linear layers' output, values (N, F).

        With `dvalues` and `grads`, also their gradients, of scale / 2 * (that sum).
        """
        weights, total, start = self._begin(), 0.0, 0
        for each in kept:
            n = each.where[0].shape[0]
            part = slice(start, start + n)
            start += n
            buffers = self._buffers(n)
            dy = self._decode(each, buffers, weights, self._maps(values[part]))
            np.copyto(buffers.wide, dy.rows)
            error = buffers.wide.reshape(-1)
            total += float(np.dot(error, error))
            if dvalues is not None:
                dy.rows *= scale
                self._decoder_gradients(each, buffers, weights, dy, self._maps(dvalues[part]))
        if grads is not None:
            weights.store(_all(self.plan.decoder), grads)
        return total

    def _decode(self, kept: _Kept, buffers: _Buffers, weights: _Weights, values: Array) -> Planes:
        """Fills the decoder's maps; returns output minus images."""
        for k in reversed(range(len(self.plan.decoder))):
            chain = buffers.decoder[k]
            put(values, kept.where[k], chain[0])
            for conv, x, y in zip(self.plan.decoder[k], chain, chain[1:], strict=False):
                weights.apply(buffers.convolvers[k], conv, x, y)
            if k:
                values = buffers.values[k - 1]
                np.copyto(values, chain[-1].content)
        y, images = buffers.decoder[0][-1], kept.maps[0][0]
        dy = buffers.gradient(0, self.plan.decoder[0][-1].out_shape, None)
        np.subtract(y.rows, images.rows, out=dy.rows)
        return dy

    def _decoder_gradients(
        self, kept: _Kept, buffers: _Buffers, weights: _Weights, dy: Planes, dvalues: Array
    ) -> None:
        levels = len(self.plan.decoder)
        for k, convs in enumerate(self.plan.decoder):
            chain, by = buffers.decoder[k], buffers.convolvers[k]
            if k:
                dy = buffers.gradient(k, convs[-1].out_shape, None)
                np.copyto(dy.content, buffers.values[k - 1])
                if convs[-1].relu:
                    dy.keep_where_positive(chain[-1])
            for j in reversed(range(len(convs))):
                weights.add_gradients(by, convs[j], chain[j], dy)
                dx = buffers.gradient(k, convs[j].shape, dy)
                weights.back(by, convs[j], dy, dx)
                if j and convs[j - 1].relu:
                    dx.keep_where_positive(chain[j])
                dy = dx
            take(dy, kept.where[k], buffers.values[k] if k + 1 < levels else dvalues)

    def encoder_gradients(
        self, features: Array, dfeatures: Array, kept: list[_Kept], grads: Mapping[str, Array]
    ) -> None:
        """The encoder's gradients; features, dfeatures (N, F)."""
        weights, start = self._begin(), 0
        for each in kept:
            n = each.where[0].shape[0]
            part = slice(start, start + n)
            start += n
            d = dfeatures[part]
            if self.plan.encoder[-1][-1].relu:
                d = d * (features[part] > 0)
            self._encoder_gradients(each, self._buffers(n), weights, self._maps(d))
        weights.store(_all(self.plan.encoder), grads)

    def _encoder_gradients(
        self, kept: _Kept, buffers: _Buffers, weights: _Weights, d: Array
    ) -> None:
        for k in reversed(range(len(self.plan.encoder))):
            convs, maps, by = self.plan.encoder[k], kept.maps[k], buffers.convolvers[k]
            dy = buffers.gradient(k, convs[-1].out_shape, None)
            put(d, kept.where[k], dy)
            for j in reversed(range(len(convs))):
                weights.add_gradients(by, convs[j], maps[j], dy)
                if not j and not k:
                    return
                dx = buffers.gradient(k, convs[j].shape, dy)
                weights.back(by, convs[j], dy, dx)
                before = convs[j - 1] if j else self.plan.encoder[k - 1][-1]
                if before.relu:
                    dx.keep_where_positive(maps[j])
                dy = dx
            d = buffers.values[k - 1]
            np.copyto(d, dy.content)


def _all(levels: tuple[tuple[_Conv, ...], ...]) -> Iterator[_Conv]:
    return (conv for convs in levels for conv in convs)
