"""Numbers as colours, with a bar that says which colour is which number.

For numbers from 0 upwards the colours run from black through purple, red and orange to pale yellow.
The anchors are nine evenly spaced colours of "inferno" by Nathaniel Smith and Stefan van der Walt
(2015, CC0), whose lightness rises evenly with the number, so that equal steps look equal, also in
gray print. Numbers of either sign have blue below 0, red above it, and near-white at 0, so that the
two ends of such a scale are always equally far from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import Floats
from cae_raw.pictures.layout import INK, PAPER, text

if TYPE_CHECKING:
    from PIL.Image import Image

ANCHORS = (0x000004, 0x210C4A, 0x57106E, 0x8A226A, 0xBC3754, 0xE45A31, 0xF98E09, 0xF9CB35, 0xFCFFA4)
BELOW_0 = (0x0B2A5B, 0x1F62A8, 0x6FB0DC, 0xCBE3F0)
ABOVE_0 = (0xF9D5BF, 0xEC8A62, 0xBE2F35, 0x640D22)
NOT_FINITE = (0, 255, 255)  # cyan, which neither map contains
STEPS = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)  # finer than `scale_top`'s own, for scales that fit tightly


def _colours(hexadecimal: Sequence[int]) -> NDArray[np.uint8]:
    """A map as 256 RGB colours, (256, 3)."""
    anchors = np.array([[a >> 16, a >> 8 & 255, a & 255] for a in hexadecimal])
    at = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(at, range(len(anchors)), channel) for channel in anchors.T]
    table: NDArray[np.uint8] = np.rint(np.stack(columns, axis=1)).astype(np.uint8)
    return table


COLOURS = _colours(ANCHORS)
SIGNED_COLOURS = _colours((*BELOW_0, 0xF7F6F4, *ABOVE_0))


def scale_top(
    values: Floats, least: float = 1.0, steps: Sequence[float] = (1, 2, 5, 10), share: float = 0.995
) -> float:
    """A round number (one of `steps` times a power of ten) for the upper end of a colour scale.

    It is the first above this `share` of the finite values, so that a few outliers do not turn the
    rest black, and not below `least`, so that the noise of a near-perfect map is not blown up.
    """
    finite = values[np.isfinite(values)]
    wanted = max(least, float(np.quantile(finite, share)) if finite.size else 0.0)
    power = 10.0 ** floor(log10(wanted))
    return next(step * power for step in steps if step * power >= wanted * (1 - 1e-6))


def colorize(values: Floats, top: float, *, signed: bool = False) -> NDArray[np.uint8]:
    """Values (..., H, W) as colours (..., 3, H, W).

    From 0 (and below) to `top` (and above), or `signed` from -top to top. Values that are not
    finite are cyan.
    """
    finite = np.isfinite(values)
    steps = np.where(finite, values, 0) * (255 / top)
    if signed:
        steps = (steps + 255) / 2
    table = SIGNED_COLOURS if signed else COLOURS
    colours = table[np.clip(np.rint(steps), 0, 255).astype(np.uint8)]
    colours[~finite] = NOT_FINITE
    return np.ascontiguousarray(np.moveaxis(colours, -1, -3))


def colour_bar(
    top: float,
    height: int,
    font_size: int,
    *,
    over: bool = False,
    signed: bool = False,
    colours: NDArray[np.uint8] | None = None,
) -> Image:
    """The scale of `colorize` with numbers, for a map of this height.

    It is one line of text higher than the map, so that beside it, centred, both have one height;
    `over` marks that some values lie beyond its ends. `colours` (K, 3) replace the scale's own.
    """
    from PIL import Image, ImageDraw

    if colours is None:
        colours = SIGNED_COLOURS if signed else COLOURS
    low, parts = (-top, 4) if signed else (0.0, 5)
    words = [f"{low + (top - low) * i / parts:g}" for i in range(parts + 1)]
    if over and signed:
        words[0], words[-1] = f"<{words[0]}", f">{words[-1]}"
    elif over:
        words[-1] += "+"
    labels = [text(word, font_size) for word in words]
    line, width = labels[0].height, font_size
    height = max(height, (parts + 1) * line)
    ramp = np.broadcast_to(colours[::-1, None], (len(colours), width, 3))
    size = (width + font_size // 2 + max(label.width for label in labels), height + line)
    canvas = Image.new("RGB", size, PAPER)
    bar = Image.fromarray(np.ascontiguousarray(ramp)).resize((width, height))
    canvas.paste(bar, (0, line // 2))
    draw = ImageDraw.Draw(canvas)
    for i, label in enumerate(labels):
        y = line // 2 + round((1 - i / parts) * (height - 1))
        draw.line((width, y, width + font_size // 4, y), INK)
        canvas.paste(label, (width + font_size // 2, y - line // 2))
    return canvas
