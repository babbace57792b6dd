"""One image, its reconstruction and where they differ, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import Floats
from cae_raw.figures import Figures
from cae_raw.pictures.heatmap import colorize, colour_bar, scale_top
from cae_raw.pictures.layout import below, framed, integer_scale, resized, table, text, to_image

if TYPE_CHECKING:
    from PIL.Image import Image

TARGET, LARGEST = 256, 800  # pixels of a panel's longer side


def comparison(
    image: NDArray[np.uint8], reconstruction: NDArray[np.uint8], error: Floats, figures: Figures
) -> Image:
    """The input, its reconstruction and the error as a heat map, with the figures under them.

    Args:
        image, reconstruction: (C, H, W), 1 or 3 channels, from 1x1 pixels to any size; small ones
            are magnified and large ones reduced by a whole number, which the caption names.
        error: (H, W), of `cae_raw.figures.error_levels`.
        figures: those of this image.
    """
    from PIL import Image

    height, width = error.shape
    scale = integer_scale((height, width), TARGET, LARGEST)
    shown = resized(Image.fromarray(error.astype(np.float32)), scale)
    values = np.asarray(shown)
    top = scale_top(values)
    panels = [
        resized(to_image(image), scale),
        resized(to_image(reconstruction), scale),
        to_image(colorize(values, top)),
    ]
    size = max(16, max(shown.size) // 32)
    titles = [
        text(words, size) for words in ("input", "reconstruction", "error in gray levels (of 255)")
    ]
    bar = colour_bar(top, shown.height, size, over=bool(np.any(values > top)))
    caption = [f"{figures}", f"{width} x {height} pixels" + _scale_words(scale)]
    if not np.isfinite(error).all():
        caption.append("cyan: not a finite number")
    lines = below([text(words, size) for words in caption], size // 4)
    return framed(below([table([titles, [*panels, bar]], (size, 0)), lines]))


def _scale_words(scale: int) -> str:
    if scale == 1:
        return ""
    return f", magnified {scale} times" if scale > 1 else f", shown at 1/{-scale} of its size"
