"""Making an image fit a model: its channels, and its size where the model takes one size only.

Channels: colour becomes luma (ITU-R 601) for a model of gray images, gray is repeated for one of
RGB. Size: the whole picture is resized (Lanczos), each side by itself, so that nothing is cut off
and a picture of another shape is squashed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.lmdb_datum import resized
from cae_raw.models import Autoencoder

GRAY_REPEATED = "a gray image for a model of RGB images: its channel was repeated"
TURNED_TO_GRAY = "a colour image for a model of gray images: it was turned to gray"

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # height, width


def with_channels(image: Pixels, channels: int) -> tuple[Pixels, tuple[str, ...]]:
    """An image (1 or 3, H, W) with 1 or 3 channels, and a note where that changed it."""
    if len(image) == channels:
        return image, ()
    if channels == 3:
        return np.repeat(image, 3, axis=0), (GRAY_REPEATED,)
    from PIL import Image

    luma = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L")
    return np.asarray(luma)[None], (TURNED_TO_GRAY,)


def with_size(image: Pixels, size: Size | None) -> tuple[Pixels, tuple[str, ...]]:
    """An image (C, H, W) at this size, and a note where that changed it; None leaves it alone."""
    if size is None or image.shape[1:] == size:
        return image, ()
    (_, height, width), (h, w) = image.shape, size
    squashed = "" if height * w == width * h else ", which squashes it"
    note = f"resized from {width}x{height} to {w}x{h} pixels (Lanczos, the whole picture{squashed})"
    return np.ascontiguousarray(resized(image, size)), (note,)


def fit(model: Autoencoder, image: Pixels) -> tuple[Pixels, tuple[str, ...]]:
    """An image as the model takes it, and a note for each thing that had to be changed."""
    image, first = with_channels(image, model.channels)
    image, second = with_size(image, model.image_size)
    return image, first + second
