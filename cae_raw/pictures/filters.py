"""The weights of convolutions as pictures.

A filter that looks at an image (or paints one) is shown as one: with 3 channels in colour, where
middle gray is 0 and each channel runs from -top to top; with 1 channel in blue and red. Filters
between maps are a table of small squares, a column per output map and a row per input map or the
other way round, whichever is wider. All are drawn as they are stored, not flipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cae_raw.data.scaling import Floats
from cae_raw.pictures.heatmap import NOT_FINITE, colour_bar
from cae_raw.pictures.page import (
    BAR,
    GAP,
    HEIGHT,
    SMALL,
    WIDTH,
    Bytes,
    Grid,
    Picture,
    Scale,
    map_panel,
    page,
    panel,
    tiles,
)
from cae_raw.pictures.view import Stage, View

if TYPE_CHECKING:
    from PIL.Image import Image

GRAYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def encoder_filters(view: View) -> Iterator[Picture]:
    """Of each convolution of the encoder."""
    return _filters(view, "encoder")


def decoder_filters(view: View) -> Iterator[Picture]:
    """Of each convolution of the decoder."""
    return _filters(view, "decoder")


def _filters(view: View, side: str) -> Iterator[Picture]:
    for stage in view.stages:
        if stage.side == side:
            yield _picture(view, stage)


def _picture(view: View, stage: Stage) -> Picture:
    weights = view.weights(stage.index)
    o, i, kh, kw = weights.shape
    scale = Scale(Scale.of(weights, share=1.0).top, signed=True)
    if i in (1, 3):
        how, body = f"what each of {o} output maps takes up", _patches(weights, scale)
    elif o in (1, 3):
        painted = weights.transpose(1, 0, 2, 3)
        how, body = f"what each of {i} input maps paints", _patches(painted, scale)
    else:
        how, body = f"what each of {o} output maps takes of each of {i}", _table(weights, scale)
    lines = [
        f"layer {stage.index}: Conv2d {i} -> {o}, {kh}x{kw}, weights {weights.shape}: {how}",
        view.heading,
    ]
    number = stage.key.removeprefix(stage.side)
    return Picture(
        name=f"{stage.side}_filters{number}",
        shows=f"filters of the {stage.title}: {how}; weights from {scale}",
        image=page(f"Filters of the {stage.title}", lines, body),
        ranges={"weights": scale.range},
        about="weights",
    )


def colours_of(filters: Floats, top: float) -> Bytes:
    """Weights (..., 3, KH, KW) as RGB bytes: -top is 0, top is 255.

    A place where one of them is not finite is cyan.
    """
    finite = np.isfinite(filters).all(axis=-3, keepdims=True)
    levels = np.rint((np.where(finite, filters, 0) / top + 1) * 127.5)
    colours: Bytes = np.clip(levels, 0, 255).astype(np.uint8)
    cyan = np.array(NOT_FINITE, np.uint8)[:, None, None]
    return np.where(finite, colours, cyan)


def _patches(filters: Floats, scale: Scale) -> Image:
    """Filters (N, C, KH, KW) with 1 or 3 channels as small images."""
    count, channels, kh, kw = filters.shape
    grid = Grid.filling(count, kh, kw, (WIDTH - BAR, HEIGHT - 250))
    if channels == 1:
        return map_panel("weights", filters[:, 0], scale, grid)
    body = tiles(colours_of(filters, scale.top), grid)
    bar = colour_bar(scale.top, body.height, SMALL, signed=True, colours=GRAYS)
    return panel("weights of red, green and blue: each from dark to bright", body, bar)


def _table(weights: Floats, scale: Scale) -> Image:
    o, i, kh, kw = weights.shape
    names, shape = ("input", "output"), (i, o)
    filters = weights.transpose(1, 0, 2, 3)
    if i > o:
        names, shape, filters = names[::-1], shape[::-1], weights
    down, across = shape
    cell = ((WIDTH - BAR) // across - GAP, (HEIGHT - 200) // down - GAP)
    grid = Grid(across, max(1, Grid.filling(1, kh, kw, cell).scale))
    title = f"weights; across: {names[1]} maps 0 to {across - 1}; down: {names[0]} maps"
    labels = [f"{row}" for row in range(down)]
    return map_panel(title, filters.reshape(-1, kh, kw), scale, grid, labels)
