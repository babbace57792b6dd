"""Many small images in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cae_raw.errors import InputError
from cae_raw.pictures.layout import (
    below,
    beside,
    framed,
    integer_scale,
    resized,
    table,
    text,
    to_image,
)

if TYPE_CHECKING:
    from PIL.Image import Image

TARGET, LARGEST = 112, 256  # pixels of an image's longer side in a grid
GAP = 4

Images = NDArray[np.uint8]


def grid(images: Images, columns: int = 8) -> Image:
    """Images (N, C, H, W) with 1 or 3 channels, row by row, all at one whole-number scale.

    Raises:
        InputError: if there are no images.
    """
    pieces = _pieces(images)
    rows = [pieces[i : i + columns] for i in range(0, len(pieces), columns)]
    return framed(table(rows, (GAP, GAP)))


def reconstructions_grid(inputs: Images, outputs: Images, columns: int = 8) -> Image:
    """Inputs over their reconstructions, both (N, C, H, W), in blocks of two labelled rows.

    Raises:
        InputError: if there are no images, or the shapes differ.
    """
    if inputs.shape != outputs.shape:
        raise InputError(f"inputs {inputs.shape} and reconstructions {outputs.shape} differ")
    above, under = _pieces(inputs), _pieces(outputs)
    labels = text("input"), text("reconstruction")
    blocks = []
    for i in range(0, len(above), columns):
        rows = [beside(row[i : i + columns], GAP) for row in (above, under)]
        labelled = [[labels[0], rows[0]], [labels[1], rows[1]]]
        blocks.append(table(labelled, (3 * GAP, GAP), (1, 0.5)))
    return framed(below(blocks, 4 * GAP, 0))


def _pieces(images: Images) -> list[Image]:
    if not len(images):
        raise InputError("no images to show: give at least one")
    scale = integer_scale(images.shape[2:], TARGET, LARGEST)
    return [resized(to_image(image), scale) for image in images]
