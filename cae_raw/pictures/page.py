"""Pictures for a slide: a heading, panels of many small maps, colour bars.

Sizes are chosen for a picture that fills a slide: of `WIDTH` pixels across, the smallest letters
have 24, which is 14 points on a slide of 13.3 inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.scaling import Floats
from cae_raw.pictures.heatmap import STEPS, colorize, colour_bar, scale_top
from cae_raw.pictures.layout import below, beside, framed, resized, table, text, to_image

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH, HEIGHT = 1600, 960  # what the panels of a picture shall fill
TITLE, LABEL, SMALL = 44, 30, 24  # letters
BAR = 150  # pixels beside a panel for its colour bar and numbers
GAP = 6  # between the tiles of a panel
MARGIN = 36

Bytes = NDArray[np.uint8]
Range = tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """Something to look at.

    name: of the file and the tag. shows: one line. ranges: the ends of its colour scales, by what
    they stand for. about: "weights", "images" or "history".
    """

    name: str
    shows: str
    image: Image
    ranges: dict[str, Range] = field(default_factory=dict)
    about: str = "images"

    def array(self) -> Bytes:
        """RGB, uint8 (H, W, 3)."""
        return np.asarray(self.image)


@dataclass(frozen=True)
class Scale:
    """Which numbers get which colours: from 0 to `top`, or `signed` from -top to top."""

    top: float
    signed: bool
    over: bool = False  # some values lie beyond

    @classmethod
    def of(cls, values: Floats, share: float = 0.999) -> Scale:
        """A scale for these values; signed if one of them is below 0."""
        finite = values[np.isfinite(values)]
        size = np.abs(finite)
        largest = float(size.max(initial=0.0))
        if largest == 0:
            return cls(1.0, False)
        top = scale_top(size, least=largest * 1e-6, steps=STEPS, share=share)
        top = float(f"{top:.4g}")  # so that 3 * 0.1 reads 0.3
        return cls(top, bool(finite.min() < 0), largest > top * (1 + 1e-6))

    @property
    def range(self) -> Range:
        return (-self.top if self.signed else 0.0, self.top)

    def __str__(self) -> str:
        low, high = self.range
        return f"{low:g} to {high:g}"

    def colours(self, values: Floats) -> Bytes:
        """Values (..., H, W) as (..., 3, H, W)."""
        return colorize(values, self.top, signed=self.signed)

    def bar(self, height: int) -> Image:
        return colour_bar(self.top, height, SMALL, over=self.over, signed=self.signed)


@dataclass(frozen=True)
class Grid:
    """How many tiles stand in a row, at which whole-number scale (see `layout.resized`)."""

    columns: int
    scale: int

    def size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """(width, height) of so many tiles."""
        rows = -(-count // self.columns)
        w, h = (v * self.scale if self.scale > 0 else v // -self.scale for v in (width, height))
        return self.columns * (w + GAP) - GAP, rows * (h + GAP) - GAP

    @classmethod
    def filling(cls, count: int, height: int, width: int, box: tuple[int, int]) -> Grid:
        """The one with the largest tiles that fits a box (width, height).

        Of equals the one with the fewest empty places, then the widest.
        """

        def largest(columns: int) -> int:
            for scale in (*range(64, 0, -1), *range(-2, -256, -1)):
                w, h = cls(columns, scale).size(count, height, width)
                if w <= box[0] and h <= box[1]:
                    return scale
            return -256

        def rank(grid: Grid) -> tuple[int, int, int]:
            return grid.scale, -(-count % grid.columns), grid.columns

        return max((cls(c, largest(c)) for c in range(1, count + 1)), key=rank)


def tiles(images: Bytes, grid: Grid, labels: Sequence[str] | None = None) -> Image:
    """Images (N, C, H, W) with 1 or 3 channels, row by row.

    Each row has a label; without `labels` that is the number of its first image, counted from 0,
    where there is more than one row.
    """
    pieces = [scaled(image, grid.scale) for image in images]
    starts = range(0, len(pieces), grid.columns)
    rows = [pieces[i : i + grid.columns] for i in starts]
    if labels is None:
        labels = [f"{i}" for i in starts] if len(rows) > 1 else [""]
    words = [text(f"{label} ", SMALL) for label in labels]
    return table(
        [[word, *row] for word, row in zip(words, rows, strict=True)], (GAP, GAP), (1, 0.5)
    )


def panel(title: str, body: Image, bar: Image | None = None) -> Image:
    """A body under its title, with a colour bar at its right."""
    return below([text(title, LABEL), body if bar is None else beside([body, bar], 20)], 8, 0)


def map_panel(
    title: str, maps: Floats, scale: Scale, grid: Grid, labels: Sequence[str] | None = None
) -> Image:
    """Maps (N, H, W) as colours, with their colour bar."""
    maps, grid = reduced(maps, grid.scale), Grid(grid.columns, max(1, grid.scale))
    body = tiles(scale.colours(maps), grid, labels)
    return panel(title, body, scale.bar(body.height))


def reduced(maps: Floats, scale: int) -> Floats:
    """Maps (N, H, W) at a scale below 0; numbers are averaged there, where colours cannot be."""
    if scale > 0:
        return maps
    from PIL import Image

    return np.stack(
        [np.asarray(Image.fromarray(m.astype(np.float32)).reduce(-scale)) for m in maps]
    )


def scaled(pixels: Bytes, scale: int) -> Image:
    """An image uint8 (C, H, W) at a whole-number scale."""
    return resized(to_image(pixels), scale)


def page(title: str, lines: Sequence[str], panels: Image) -> Image:
    """Panels under a heading and lines of explanation."""
    heading = [text(title, TITLE), *(text(line, SMALL) for line in lines)]
    return framed(below([below(heading, 4, 0), panels], 20, 0), MARGIN)
