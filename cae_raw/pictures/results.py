"""What comes out of a model: reconstructions under their inputs, and where they are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cae_raw.pictures.heatmap import scale_top
from cae_raw.pictures.layout import below, table, text
from cae_raw.pictures.page import (
    BAR,
    GAP,
    HEIGHT,
    LABEL,
    SMALL,
    WIDTH,
    Grid,
    Picture,
    Scale,
    page,
    reduced,
    scaled,
)
from cae_raw.pictures.view import View

if TYPE_CHECKING:
    from PIL.Image import Image

MOST, MOST_ERRORS = 16, 6  # images in a picture
MOST_IN_ROWS = 2  # images that stand beside their outputs, not above them
LABELS = 120  # pixels for words at the left


def reconstructions(view: View) -> Iterator[Picture]:
    """Inputs over outputs, in rows of eight."""
    inputs, outputs = view.images[:MOST], view.outputs[:MOST]
    count, _, height, width = inputs.shape
    columns = min(8, count)
    blocks = -(-count // columns)
    cell = ((WIDTH - LABELS) // columns - GAP, (HEIGHT - 150) // (2 * blocks) - GAP)
    scale = Grid.filling(1, height, width, cell).scale
    rows = []
    for i in range(0, count, columns):
        for word, images in (("input", inputs), ("output", outputs)):
            rows.append(_row(word, [scaled(image, scale) for image in images[i : i + columns]]))
    body = below([table(rows[i : i + 2], (GAP, GAP), (1, 0.5)) for i in range(0, len(rows), 2)], 28)
    mean = sum(figures.half_mse for figures in view.figures[:MOST]) / count
    size = "x".join(map(str, inputs.shape[1:]))
    lines = [f"{_images(count)} of {size}, mean half_mse {mean:.5f}", view.heading]
    yield Picture(
        "reconstructions",
        f"{_images(count)} over what the model makes of them, mean half_mse {mean:.5f}",
        page("Inputs over reconstructions", lines, body),
    )


def errors(view: View) -> Iterator[Picture]:
    """Inputs, outputs, and how far each pixel is off: under each other, few images in rows."""
    count = min(MOST_ERRORS, len(view.images))
    in_rows = count <= MOST_IN_ROWS
    height, width = view.images.shape[2:]
    across, down = (3, count) if in_rows else (count, 3)
    cell = ((WIDTH - LABELS - BAR) // across - GAP, (HEIGHT - 200) // down - GAP)
    scale = Grid.filling(1, height, width, cell).scale
    values = reduced(view.errors[:count], scale)
    top = scale_top(values)
    colours = Scale(top, False, bool(np.any(values > top)))
    stages = {
        "input": [scaled(image, scale) for image in view.images[:count]],
        "output": [scaled(image, scale) for image in view.outputs[:count]],
        "error": [scaled(image, max(1, scale)) for image in colours.colours(values)],
    }
    quality = [text(f"{figures.psnr:.1f} dB", SMALL) for figures in view.figures[:count]]
    bar = colours.bar(stages["error"][0].height)
    if in_rows:
        columns = zip(quality, *stages.values(), strict=True)
        cells = [[text(word, LABEL) for word in ("PSNR", *stages)], *([*c, bar] for c in columns)]
    else:
        cells = [_row(word, pieces) for word, pieces in stages.items()]
        cells[-1].append(bar)
        cells.append(_row("PSNR", quality))
    lines = [f"error in gray levels of 255, {colours}", view.heading]
    if not np.isfinite(values).all():
        lines[0] += "; cyan: not a finite number"
    yield Picture(
        "errors",
        f"where the reconstructions of {_images(count)} are wrong, in gray levels of 255",
        page("Where reconstructions are wrong", lines, table(cells, (GAP, GAP))),
        {"error in gray levels": colours.range},
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _row(label: str, pieces: Sequence[Image]) -> list[Image]:
    return [text(label, LABEL), *pieces]
