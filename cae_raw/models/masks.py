"""Pooling masks for decoding a bare code.

A decoder that unpools needs, besides the code, the place of each value in its window. A code does
not hold that: the masks carry information around it. Whoever decodes codes alone has to take the
masks from elsewhere, and here are the two ways:

- `masks_of` an image: what the encoder's pooling layers choose for it. With the image that the code
  was made of, decoding gives the model's reconstruction; with another one, its places.
- `centre_masks`: every value goes to the tap (KH // 2, KW // 2) of its window, counted from 0. That
  is the middle of a window of odd size, and of a 2x2 window the lower right value. Windows that
  reach into the padding take the tap nearest to it that lies on the map.

Masks are the entries that pooling layers leave in a trace: layer -> (mask, shape of its input).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cae_raw.errors import InputError
from cae_raw.layers import MaxPool2d, MaxUnpool2d
from cae_raw.layers.base import Array, Shape, Trace
from cae_raw.models.autoencoder import Autoencoder
from cae_raw.models.inference import layers_of


def pooling_layers(model: Autoencoder) -> list[MaxPool2d]:
    """The layers of the encoder whose masks the decoder reads, in their order."""
    read = {layer.pool for layer in model.stack if isinstance(layer, MaxUnpool2d)}
    encoder = model.stack[: model.encoder_length]
    return [layer for layer in encoder if isinstance(layer, MaxPool2d) and layer in read]


def masks_of(model: Autoencoder, x: Array) -> Trace:
    """The masks of a batch of images x (N, C, H, W), scaled to the value range."""
    trace: Trace = {}
    layers_of(model, 0, model.encoder_length).forward(x, trace)
    return {pool: trace[pool] for pool in pooling_layers(model)}


def centre_masks(model: Autoencoder, n: int, image_size: tuple[int, int] | None = None) -> Trace:
    """Masks for n codes that put every value into the centre of its window.

    Args:
        image_size: (height, width) of the images that the codes stand for; None takes the model's.

    Raises:
        InputError: if neither says which size that is, and masks are needed.
    """
    pools = pooling_layers(model)
    size = image_size or model.image_size
    if not pools:
        return {}
    if size is None:
        raise InputError(f"the model {model.name} takes more than one image size: state it")
    shapes = model.layer_shapes((model.channels, *size))
    masks: Trace = {}
    for pool in pools:
        before = shapes[model.stack.index(pool)]
        c, oh, ow = pool.output_shape(before)
        row, column = (_centre(pool, axis, (oh, ow)[axis], before[1 + axis]) for axis in (0, 1))
        mask = row[:, None] * pool.kernel_size[1] + column
        masks[pool] = _as_entry(model, np.broadcast_to(mask, (n, c, oh, ow)), before)
    return masks


def repeat_masks(model: Autoencoder, masks: Trace, n: int) -> Trace:
    """The masks of one image, for n codes."""
    repeated: Trace = {}
    for pool, (mask, shape) in masks.items():
        host = model.backend.to_numpy(mask)
        wanted = (n, *host.shape[1:])
        repeated[pool] = _as_entry(model, np.broadcast_to(host, wanted), tuple(shape[1:]))
    return repeated


def _centre(pool: MaxPool2d, axis: int, windows: int, size: int) -> np.ndarray:
    """The middle tap of each window along an axis, moved onto the map where it lies behind it.

    It never lies before the map, because the padding is at most half a window.
    """
    first = np.arange(windows) * pool.stride[axis] - pool.padding[axis]
    on_map: np.ndarray = np.minimum(pool.kernel_size[axis] // 2, size - 1 - first)
    return on_map


def _as_entry(model: Autoencoder, mask: np.ndarray, before: Shape) -> tuple[Array, Shape]:
    host = np.ascontiguousarray(mask, dtype=np.uint8)
    return model.backend.asarray(host), (len(host), *before)


RULES: dict[str, Callable[[Autoencoder, int], Trace]] = {"centre": centre_masks}
