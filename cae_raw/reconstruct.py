"""Images of any size through a model, block by block, and the figures of how well that went.

A large image is cut into blocks. Each block is computed from a window that reaches `model.halo`
pixels further on every side, so that the blocks together are the reconstruction of the whole image.
All windows of an image have one shape: at the image's edges they are moved inwards, not cut.
A model that takes one size only gets images of that size, or, on request, tiles (`tiles`).
Besides the image, its reconstruction and its error map, at most about `BLOCK_BYTES` are in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt, prod

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import Floats, to_bytes, to_floats
from cae_raw.errors import InputError
from cae_raw.figures import Figures, error_levels
from cae_raw.layers import Conv2d
from cae_raw.models import Autoencoder
from cae_raw.models.inference import reconstruct
from cae_raw.tiles import Block, tiled_blocks

BLOCK_BYTES = 16 * 2**20  # for the maps of one block; measured: larger ones gain nothing on a CPU
SMALLEST_BLOCK = 32  # pixels a side, however wide the model's maps are


@dataclass(frozen=True)
class Reconstruction:
    """An image and what a model makes of it.

    image, output: uint8 (C, H, W).
    error: how far each pixel is off, in gray levels of 255, (H, W); see `error_levels`.
    figures: from the model's floats, before they were rounded to bytes.
    not_finite: how many of the model's values were infinite or not a number.
    """

    image: NDArray[np.uint8]
    output: NDArray[np.uint8]
    error: Floats
    figures: Figures
    not_finite: int = 0


def reconstruct_image(
    model: Autoencoder, image: NDArray[np.uint8], *, tile: bool = False
) -> Reconstruction:
    """Reconstruct one image, uint8 (C, H, W), with the model on whatever backend it is.

    With `tile`, a model of one size reconstructs an image of any size in overlapping tiles.

    Raises:
        InputError: if the model cannot take an image of this shape.
    """
    output = np.empty_like(image)
    error = np.empty(image.shape[1:], np.float32)
    total, not_finite = 0.0, 0
    blocks = tiled_blocks(model, image) if tile else reconstructed_blocks(model, image)
    for (rows, columns), x, y in blocks:
        output[:, rows, columns] = to_bytes(y, model.value_range)
        error[rows, columns] = error_levels(y, x, model.value_range)
        with np.errstate(over="ignore"):
            total += float(np.sum(np.square(y - x, dtype=np.float64)))
        not_finite += int(np.count_nonzero(~np.isfinite(y)))
    figures = Figures.from_squared_error(total, image.size, model.value_range)
    return Reconstruction(image, output, error, figures, not_finite)


def reconstructed_blocks(
    model: Autoencoder, image: NDArray[np.uint8], block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[Block, Floats, Floats]]:
    """Yield (where, x, y) until the image is covered: input and output (C, h, w), in floats.

    Raises:
        InputError: if the model cannot take an image of this shape.
    """
    _require_fit(model, image)
    height, width = image.shape[1:]
    if model.halo is None:  # such a model sees everything at once
        side, halo = max(height, width), 0
    else:
        side, halo = _block_side(model, block_bytes), model.halo
    for window_rows, rows in _cut(height, side, halo):
        for window_columns, columns in _cut(width, side, halo):
            window = image[:, window_rows, window_columns]
            x, y = to_floats(window, model.value_range), reconstruct(model, window[None])[0]
            inner = (
                slice(None),
                slice(rows.start - window_rows.start, rows.stop - window_rows.start),
                slice(columns.start - window_columns.start, columns.stop - window_columns.start),
            )
            yield (rows, columns), x[inner], y[inner]


def _require_fit(model: Autoencoder, image: NDArray[np.uint8]) -> None:
    made = tuple(model.output_shape(image.shape))
    if made != image.shape:
        raise InputError(
            f"the model makes {made} of an image of shape {image.shape}: "
            "use images of the size that it was trained on"
        )


def _block_side(model: Autoencoder, block_bytes: int) -> int:
    """Pixels a side of blocks whose windows need about `block_bytes` in a forward pass.

    That keeps every layer's output, and the shifted copies of one convolution at a time.
    """
    side = 64 + 2 * model.halo if model.halo else 64
    shape: tuple[int, ...] = (model.channels, side, side)
    maps, copies = prod(shape), 0
    for layer in model.stack:
        before, shape = shape, layer.output_shape(shape)
        maps += prod(shape)
        if isinstance(layer, Conv2d):
            copies = max(copies, prod(layer.kernel_size) * min(prod(before), prod(shape)))
    pixels = block_bytes * side * side // (4 * (maps + copies))
    return max(SMALLEST_BLOCK, isqrt(pixels) - 2 * (model.halo or 0))


def _cut(size: int, side: int, halo: int) -> Iterator[tuple[slice, slice]]:
    """Cut an axis into even parts of at most `side`: (window, part) for each.

    All windows have one length and lie inside the axis; each reaches at least `halo` beyond its
    part, or to the end of the axis.
    """
    parts = -(-size // side)
    window = min(size, -(-size // parts) + 2 * halo)
    for i in range(parts):
        start, stop = size * i // parts, size * (i + 1) // parts
        first = min(max(0, start - halo), size - window)
        yield slice(first, first + window), slice(start, stop)
