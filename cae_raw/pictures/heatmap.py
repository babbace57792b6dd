"""Numbers as colours, with a bar that says which colour is which number.

The colour map runs from black through purple, red and orange to pale yellow. Its anchors are nine
evenly spaced colours of "inferno" by Nathaniel Smith and Stefan van der Walt (2015, CC0), whose
lightness rises evenly with the number, so that equal steps look equal, also in gray print.
"""

from __future__ import annotations

from math import floor, log10
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import Floats
from cae_raw.pictures.layout import INK, PAPER, text

if TYPE_CHECKING:
    from PIL.Image import Image

ANCHORS = (0x000004, 0x210C4A, 0x57106E, 0x8A226A, 0xBC3754, 0xE45A31, 0xF98E09, 0xF9CB35, 0xFCFFA4)
NOT_FINITE = (0, 255, 255)  # cyan, which the map does not contain


def _colours() -> NDArray[np.uint8]:
    """The map as 256 RGB colours, (256, 3)."""
    anchors = np.array([[a >> 16, a >> 8 & 255, a & 255] for a in ANCHORS])
    at = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(at, range(len(anchors)), channel) for channel in anchors.T]
    table: NDArray[np.uint8] = np.rint(np.stack(columns, axis=1)).astype(np.uint8)
    return table


COLOURS = _colours()


def scale_top(values: Floats, least: float = 1.0) -> float:
    """A round number (1, 2 or 5 times a power of ten) for the upper end of a colour scale.

    It is the first above 99.5 % of the finite values, so that a few outliers do not turn the rest
    black, and not below `least`, so that the noise of a near-perfect map is not blown up.
    """
    finite = values[np.isfinite(values)]
    wanted = max(least, float(np.quantile(finite, 0.995)) if finite.size else 0.0)
    power = 10.0 ** floor(log10(wanted))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted * (1 - 1e-6))


def colorize(values: Floats, top: float) -> NDArray[np.uint8]:
    """Values (H, W) as colours (3, H, W): 0 and below black, `top` and above pale yellow.

    Values that are not finite are cyan.
    """
    finite = np.isfinite(values)
    steps = np.where(finite, values, 0) * (255 / top)
    colours = COLOURS[np.clip(np.rint(steps), 0, 255).astype(np.uint8)]
    colours[~finite] = NOT_FINITE
    return np.ascontiguousarray(colours.transpose(2, 0, 1))


def colour_bar(top: float, height: int, font_size: int, *, over: bool = False) -> Image:
    """The scale from 0 to `top` with numbers, for a map of this height.

    It is one line of text higher than the map, so that beside it, centred, both have one height;
    `over` marks that some values are larger than `top`.
    """
    from PIL import Image, ImageDraw

    words = [text(f"{top * i / 5:g}", font_size) for i in range(5)]
    words.append(text(f"{top:g}" + ("+" if over else ""), font_size))
    line, width = words[0].height, font_size
    height = max(height, 6 * line)
    ramp = np.broadcast_to(COLOURS[::-1, None], (256, width, 3))
    size = (width + font_size // 2 + max(word.width for word in words), height + line)
    canvas = Image.new("RGB", size, PAPER)
    bar = Image.fromarray(np.ascontiguousarray(ramp)).resize((width, height))
    canvas.paste(bar, (0, line // 2))
    draw = ImageDraw.Draw(canvas)
    for i, word in enumerate(words):
        y = line // 2 + round((1 - i / 5) * (height - 1))
        draw.line((width, y, width + font_size // 4, y), INK)
        canvas.paste(word, (width + font_size // 2, y - line // 2))
    return canvas
