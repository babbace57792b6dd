"""The two ends of a ranking by error: each image over its reconstruction over its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cae_raw.pictures.heatmap import colorize, colour_bar, scale_top
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
from cae_raw.reconstruct import Reconstruction

if TYPE_CHECKING:
    from PIL.Image import Image

TARGET, LARGEST = 112, 160  # pixels of an image's longer side
SMALL = 13
LONGEST = 16  # characters of a caption's line
GAP = 8


@dataclass(frozen=True)
class Entry:
    """An image of the ranking and the lines that stand under it."""

    reconstruction: Reconstruction
    caption: tuple[str, ...]


def ranking_picture(highest: Sequence[Entry], lowest: Sequence[Entry], title: str) -> Image:
    """The images with the highest errors, and below them those with the lowest.

    Errors are gray levels of 255 as colours, on one scale for all of them.
    """
    every = [*highest, *lowest]
    values = np.concatenate([entry.reconstruction.error.ravel() for entry in every])
    top = scale_top(values)
    blocks = [text(title)]
    for words, entries in (("highest errors", highest), ("lowest errors", lowest)):
        labels = [text(label, SMALL) for label in ("input", "reconstruction", "error")]
        columns = [_column(entry, top) for entry in entries]
        rows = [[labels[i] if i < 3 else text("", SMALL), *(column[i] for column in columns)]
                for i in range(4)]  # fmt: skip
        blocks += [text(words), table(rows, (GAP, GAP // 2))]
    body = below(blocks, GAP, 0)
    bar = colour_bar(top, 240, SMALL, over=bool(np.any(values > top)))
    legend = below([text("error in gray", SMALL), text("levels of 255", SMALL), bar], GAP // 2, 0)
    return framed(beside([body, legend], 2 * GAP, 0))


def _column(entry: Entry, top: float) -> list[Image]:
    made = entry.reconstruction
    scale = integer_scale(made.error.shape, TARGET, LARGEST)
    panels = [made.image, made.output, colorize(made.error, top)]
    lines = [text(shortened(line), SMALL) for line in entry.caption]
    return [*(resized(to_image(panel), scale) for panel in panels), below(lines)]


def shortened(words: str) -> str:
    """In ASCII, which is all that the font has, and not longer than a picture is wide."""
    plain = words.encode("ascii", "replace").decode()
    return plain if len(plain) <= LONGEST else "..." + plain[3 - LONGEST :]
