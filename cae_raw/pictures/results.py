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
    """Inputs, outputs, and how far each pixel is off."""
    count = min(MOST_ERRORS, len(view.images))
    values = view.errors[:count]
    height, width = values.shape[1:]
    cell = ((WIDTH - LABELS - BAR) // count - GAP, (HEIGHT - 200) // 3 - GAP)
    scale = Grid.filling(1, height, width, cell).scale
    values = reduced(values, scale)
    colours = Scale(scale_top(values), False)
    colours = Scale(colours.top, False, bool(np.any(values > colours.top)))
    maps = [scaled(image, max(1, scale)) for image in colours.colours(values)]
    rows = [
        _row("input", [scaled(image, scale) for image in view.images[:count]]),
        _row("output", [scaled(image, scale) for image in view.outputs[:count]]),
        _row("error", maps),
        _row("PSNR", [text(f"{figures.psnr:.1f} dB", SMALL) for figures in view.figures[:count]]),
    ]
    lines = [f"error in gray levels of 255, {colours}", view.heading]
    if not np.isfinite(values).all():
        lines[0] += "; cyan: not a finite number"
    rows[2].append(colours.bar(maps[0].height))
    body = table(rows, (GAP, GAP), (0.5, 0.5))
    yield Picture(
        "errors",
        f"where the reconstructions of {_images(count)} are wrong, in gray levels of 255",
        page("Where reconstructions are wrong", lines, body),
        {"error in gray levels": colours.range},
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _row(label: str, pieces: Sequence[Image]) -> list[Image]:
    return [text(label, LABEL), *pieces]
