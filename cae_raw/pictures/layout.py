"""Small pieces of pictures, and putting them beside and under each other.

All pieces are RGB Pillow images on white. Text is ASCII in Pillow's built-in font, which needs no
file on the machine and has no other signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

PAPER = (255, 255, 255)
INK = (32, 36, 44)
FONT_SIZE = 16
MARGIN = 16


def to_image(pixels: NDArray[np.uint8]) -> Image:
    """uint8 (C, H, W) with 1 or 3 channels, as RGB."""
    from PIL import Image

    planes = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def integer_scale(size: tuple[int, int], target: int, largest: int) -> int:
    """The whole-number scale at which an image (any axis order) is easy to see and still true.

    Above 1: every pixel becomes a square of so many pixels a side, so that the longer side comes
    near `target`. Below -1: such squares are averaged, so that it does not exceed `largest`.
    """
    side = max(size)
    return -side // largest if side > largest else max(1, round(target / side))


def resized(image: Image, scale: int) -> Image:
    """An image of any mode at an `integer_scale`."""
    if scale < 0:
        return image.reduce(-scale)
    from PIL import Image

    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)


def text(words: str, size: int = FONT_SIZE) -> Image:
    """One line of text; every line of one size has the same height."""
    from PIL import Image, ImageDraw

    font = _font(size)
    width = round(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(words, font)) + 1
    image = Image.new("RGB", (width, round(size * 1.3)), PAPER)
    ImageDraw.Draw(image).text((0, round(size * 0.95)), words, INK, font, anchor="ls")
    return image


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def table(
    rows: Sequence[Sequence[Image]],
    gap: tuple[int, int] = (0, 0),
    align: tuple[float, float] = (0.5, 0.5),
) -> Image:
    """Pieces in rows and columns, each as wide and high as its largest piece; rows may be short.

    Args:
        gap: between columns, and between rows.
        align: where a piece stands in its cell, across and down; 0 is left or top, 1 the end.
    """
    from PIL import Image

    columns = max(len(row) for row in rows)
    widths = [max(row[j].width for row in rows if j < len(row)) for j in range(columns)]
    heights = [max(piece.height for piece in row) for row in rows]
    width = sum(widths) + gap[0] * (columns - 1)
    height = sum(heights) + gap[1] * (len(rows) - 1)
    canvas = Image.new("RGB", (width, height), PAPER)
    for i, row in enumerate(rows):
        for j, piece in enumerate(row):
            left = sum(widths[:j]) + gap[0] * j + round(align[0] * (widths[j] - piece.width))
            top = sum(heights[:i]) + gap[1] * i + round(align[1] * (heights[i] - piece.height))
            canvas.paste(piece, (left, top))
    return canvas


def beside(pieces: Sequence[Image], gap: int = 0, align: float = 0.5) -> Image:
    """From left to right; `align` is 0 for the upper edges, 1 for the lower ones."""
    return table([pieces], (gap, 0), (0, align))


def below(pieces: Sequence[Image], gap: int = 0, align: float = 0.5) -> Image:
    """From top to bottom; `align` is 0 for the left edges, 1 for the right ones."""
    return table([[piece] for piece in pieces], (0, gap), (align, 0))


def framed(piece: Image, margin: int = MARGIN) -> Image:
    """With white on all sides."""
    from PIL import ImageOps

    return ImageOps.expand(piece, margin, PAPER)
