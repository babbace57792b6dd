"""An image of any size through a model that takes one size only: overlapping tiles, blended.

Tiles have the model's size; neighbours overlap by half of it or more, spread evenly so that the
first and the last one end with the image. An image that is smaller than a tile is continued by its
mirror image, and what is made of that is cut off again.

Along each axis a tile counts by a raised cosine, 1 - cos(2 pi (t + 1/2) / T), divided by the sum of
those of all tiles that cover the pixel: the weights sum to 1 everywhere, and the borders of tiles,
where such a model knows least about what surrounds a pixel, hardly count. What is blended is the
difference between output and input, so that nothing is lost where there is none.

Rows are finished from top to bottom. Besides the image, memory holds three floats per value of a
strip one tile high, and one batch of tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import Floats, to_floats
from cae_raw.errors import InputError
from cae_raw.models import Autoencoder
from cae_raw.models.inference import reconstruct

BATCH_BYTES = 128 * 2**20  # for the maps of a batch; measured: a third faster than with 32 MiB
LARGEST_BATCH = 64  # tiles

Block = tuple[slice, slice]  # rows, columns


def tiled_blocks(
    model: Autoencoder, image: NDArray[np.uint8]
) -> Iterator[tuple[Block, Floats, Floats]]:
    """Yield (where, x, y) in strips of full width until the image uint8 (C, H, W) is covered.

    x and y are input and output (C, h, w), in floats of the model's value range.

    Raises:
        InputError: if the model does not take one size, or not so many channels.
    """
    tile = model.image_size
    if tile is None:
        raise InputError(
            f"the model {model.name} has no image size of its own, so there is nothing to tile for"
        )
    if len(image) != model.channels:
        raise InputError(f"the model takes {model.channels} channels, the image has {len(image)}")
    _, height, width = image.shape
    padded = _mirrored(image, tile)
    rows, columns = (_starts(padded.shape[1 + axis], tile[axis]) for axis in (0, 1))
    row_weights = _weights(rows, tile[0], padded.shape[1])
    column_weights = _weights(columns, tile[1], padded.shape[2])
    batch = _batch_size(model)
    blended = np.zeros((len(image), tile[0], padded.shape[2]), np.float32)
    for top, bottom, down in zip(rows, [*rows[1:], padded.shape[1]], row_weights, strict=True):
        band = padded[:, top : top + tile[0]]
        for i in range(0, len(columns), batch):
            lefts = columns[i : i + batch]
            cut = np.stack([band[:, :, left : left + tile[1]] for left in lefts])
            with np.errstate(all="ignore"):  # a diverged model is reported, not warned about
                difference = reconstruct(model, cut) - to_floats(cut, model.value_range)
                for left, part, across in zip(
                    lefts, difference, column_weights[i : i + batch], strict=True
                ):
                    part *= down[:, None] * across
                    blended[:, :, left : left + tile[1]] += part
        done = min(bottom, height) - top
        x = to_floats(band[:, :done, :width], model.value_range)
        yield (slice(top, top + done), slice(0, width)), x, x + blended[:, :done, :width]
        step = bottom - top
        blended[:, : tile[0] - step] = blended[:, step:].copy()
        blended[:, tile[0] - step :] = 0


def _mirrored(image: NDArray[np.uint8], tile: tuple[int, int]) -> NDArray[np.uint8]:
    """The image, continued below and to the right up to the size of a tile."""
    missing = [max(0, t - side) for t, side in zip(tile, image.shape[1:], strict=True)]
    if not any(missing):
        return image
    return np.pad(image, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin along an axis: evenly, half a tile apart at most, ending with the axis."""
    gaps = -(-(size - tile) // max(1, tile // 2))
    return [(size - tile) * i // max(1, gaps) for i in range(gaps + 1)]


def _weights(starts: list[int], tile: int, size: int) -> list[NDArray[np.float32]]:
    """How much each tile counts along an axis; over the tiles, they sum to 1 at every place."""
    assert all(b - a <= tile for a, b in pairwise(starts))
    window = 1 - np.cos(2 * np.pi * (np.arange(tile) + 0.5) / tile)
    total = np.zeros(size)
    for start in starts:
        total[start : start + tile] += window
    return [(window / total[start : start + tile]).astype(np.float32) for start in starts]


def _batch_size(model: Autoencoder) -> int:
    """Tiles whose maps, all layers' together, need about BATCH_BYTES."""
    size = model.image_size
    assert size is not None
    maps = sum(prod(shape) for shape in model.layer_shapes((model.channels, *size)))
    return max(1, min(LARGEST_BATCH, BATCH_BYTES // (4 * maps)))
