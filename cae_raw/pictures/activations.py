"""What one image becomes inside a model: maps before and after each activation, code, output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cae_raw.data.scaling import Floats, to_bytes
from cae_raw.layers import Linear, Tanh
from cae_raw.layers.activation import Activation
from cae_raw.models.masks import pooling_layers
from cae_raw.pictures.layout import below, beside, table, text
from cae_raw.pictures.page import (
    BAR,
    HEIGHT,
    LABEL,
    SMALL,
    WIDTH,
    Grid,
    Picture,
    Range,
    Scale,
    map_panel,
    page,
    panel,
    reduced,
    scaled,
    tiles,
)
from cae_raw.pictures.view import Stage, View

if TYPE_CHECKING:
    from PIL.Image import Image

HEADINGS = 260  # pixels above the maps of a picture: its title, lines and the panels' titles
PLACES = np.array(
    [[0, 114, 178], [240, 228, 66], [213, 94, 0], [0, 158, 115]], np.uint8
)  # of a 2x2 window; told apart by people of any colour vision


def encoder_maps(view: View) -> Iterator[Picture]:
    """The maps of the encoder's convolutions, before and after their activations."""
    return _maps(view, "encoder")


def decoder_maps(view: View) -> Iterator[Picture]:
    """Those of the decoder's, but for the last, whose result is the output."""
    return _maps(view, "decoder")


def _maps(view: View, side: str) -> Iterator[Picture]:
    for stage in view.stages:
        if stage.side == side and not stage.is_output:
            yield _picture(view, stage)


def _picture(view: View, stage: Stage) -> Picture:
    before = view.output_of(stage.index)
    shown = {"convolution": before}
    if stage.activation is not None:
        name = _name(stage.activation)
        after = view.output_of(stage.index + 1)
        shown = {f"before {name}": before, f"after {name}": after}
    scales = {words: Scale.of(maps) for words, maps in shown.items()}
    if isinstance(stage.activation, Tanh):
        scales[f"after {name}"] = Scale(1.0, signed=True)  # its whole range
    count, height, width = before.shape
    stacked, grid = _arrangement(len(shown), (count, height, width))
    panels = [
        map_panel(f"{words}: {_bounds(maps)}", maps, scales[words], grid)
        for words, maps in shown.items()
    ]
    body = below(panels, 24, 0) if stacked else beside(panels, 48, 0)
    lines = [
        f"layer {stage.index}: {count} maps of {height}x{width} of {view.focus_name}",
        view.heading,
    ]
    number = stage.key.removeprefix(stage.side)
    return Picture(
        name=f"{stage.side}_maps{number}",
        shows=f"the {count} maps of the {stage.title} for one image, {' and '.join(shown)}",
        image=page(f"Maps of the {stage.title}", lines, body),
        ranges={words: scale.range for words, scale in scales.items()},
    )


def _name(activation: Activation) -> str:
    """As it is written in a text."""
    return "tanh" if isinstance(activation, Tanh) else type(activation).__name__


def _arrangement(panels: int, shape: tuple[int, int, int]) -> tuple[bool, Grid]:
    """Whether panels of such maps stand one above the other, and how each is laid out."""
    count, height, width = shape
    above = (WIDTH - BAR, (HEIGHT - HEADINGS) // panels)
    aside = (WIDTH // panels - BAR, HEIGHT - HEADINGS)
    stacked, abreast = (Grid.filling(count, height, width, box) for box in (above, aside))
    return (True, stacked) if stacked.scale >= abreast.scale else (False, abreast)


def _bounds(maps: Floats) -> str:
    finite = maps[np.isfinite(maps)]
    if not finite.size:
        return "no finite value"
    words = f"{finite.min():.3g} to {finite.max():.3g}"
    return words + (", cyan: not finite" if finite.size < maps.size else "")


def output(view: View) -> Iterator[Picture]:
    """The input, and the output before and after its activation, channel by channel."""
    stage = view.stages[-1]
    if not stage.is_output:
        return
    low, high = view.model.value_range
    rows: dict[str, Floats] = {"input": view.x[view.focus]}
    if stage.activation is not None:
        name = _name(stage.activation)
        title = "Output before and after its activation"
        rows[f"before {name}"] = view.output_of(stage.index)
        rows[f"after {name}"] = view.output_of(stage.index + 1)
    else:  # what is shown of it is cut off at the ends of the range
        title = "Output, which has no activation"
        rows["output"] = view.output_of(stage.index)
        rows["cut off"] = np.clip(rows["output"], low, high)
    scales = {words: _output_scale(words, values, (low, high)) for words, values in rows.items()}
    body = _in_rows(view, rows, scales) if len(view.x[0]) == 3 else _abreast(view, rows, scales)
    ends = f"{low:g} (black) to {high:g} (white)"
    lines = [
        f"layer {stage.index} on {view.focus_name}; as an image: values from {ends}",
        view.heading,
    ]
    _, *words = rows
    yield Picture(
        name="output",
        shows=f"one image and the model's output, {' and '.join(words)}, by channel",
        image=page(title, lines, body),
        ranges={words: scale.range for words, scale in scales.items()},
    )


def _in_rows(view: View, rows: dict[str, Floats], scales: dict[str, Scale]) -> Image:
    """For colour: a row for each stage, with a map for each channel."""
    _, height, width = view.x[0].shape
    cell = ((WIDTH - 2 * BAR) // 4 - 16, (HEIGHT - 150) // len(rows) - 40)
    size = Grid.filling(1, height, width, cell).scale
    titles = ("", "red", "green", "blue", "as an image")
    cells = [[text(title, LABEL) for title in titles]]
    for words, values in rows.items():
        pieces = _channels(view, values, scales[words], size)
        label = below([text(words, LABEL), text(_bounds(values), SMALL)], 4, 1)
        cells.append([label, *pieces, scales[words].bar(pieces[0].height)])
    return table(cells, (16, 4))


def _abreast(view: View, rows: dict[str, Floats], scales: dict[str, Scale]) -> Image:
    """For gray: a column for each stage."""
    _, height, width = view.x[0].shape
    cell = (WIDTH // len(rows) - BAR, (HEIGHT - 200) // 2)
    size = Grid.filling(1, height, width, cell).scale
    columns = []
    for words, values in rows.items():
        pixels, image = _channels(view, values, scales[words], size)
        body = table([[pixels, scales[words].bar(pixels.height)], [image]], (16, 4), (0, 0.5))
        columns.append(below([text(words, LABEL), text(_bounds(values), SMALL), body], 4, 0))
    return beside(columns, 24, 0)


def _channels(view: View, values: Floats, scale: Scale, size: int) -> list[Image]:
    """Each channel in colours, then all of them as an image."""
    maps = scale.colours(reduced(values, size))
    pixels = to_bytes(values, view.model.value_range)
    return [*(scaled(one, max(1, size)) for one in maps), scaled(pixels, size)]


def _output_scale(words: str, values: Floats, value_range: Range) -> Scale:
    """The model's own range, but for values that are not held to it."""
    low, high = value_range
    if words.startswith("before") or words == "output":
        return Scale.of(values)
    return Scale(max(abs(low), abs(high)), signed=low < 0)


def code(view: View) -> Iterator[Picture]:
    """The numbers between encoder and decoder, where they are a vector."""
    index = view.model.encoder_length - 1
    if not isinstance(view.model.stack[index], Linear):
        return
    numbers = view.output_of(index)
    columns = _divisor_near(numbers.size, round((numbers.size * 16 / 9) ** 0.5))
    rows = -(-numbers.size // columns)
    values = np.full((rows, columns), np.nan, np.float32)
    values.flat[: numbers.size] = numbers
    scale = Scale.of(numbers)
    grid = Grid.filling(1, rows, columns, (WIDTH - BAR, HEIGHT - 250))
    title = f"{numbers.size} numbers, {columns} in a row: {_bounds(numbers)}"
    words = f"layer {index}: what the encoder makes of {view.focus_name}, besides the pooling masks"
    yield Picture(
        name="code",
        shows=f"the code of one image: {numbers.size} numbers, {columns} in a row",
        image=page("Code", [words, view.heading], map_panel(title, values[None], scale, grid)),
        ranges={"code": scale.range},
    )


def _divisor_near(number: int, wanted: int) -> int:
    """The divisor nearest to `wanted`, if it is within half and double of that; else `wanted`."""
    near = range(max(1, -(-wanted // 2)), min(number, 2 * wanted) + 1)
    return min((d for d in near if number % d == 0), key=lambda d: abs(d - wanted), default=wanted)


def masks(view: View) -> Iterator[Picture]:
    """Where in its window each pooled value was, which the decoder is told besides the code."""
    pools = pooling_layers(view.model)
    for number, pool in enumerate(pools, 1):
        if pool.kernel_size != (2, 2):  # the colours stand for four places
            continue
        mask = view.mask_of(pool)
        count, height, width = mask.shape
        grid = Grid.filling(count, height, width, (WIDTH - BAR, HEIGHT - HEADINGS))
        colours = np.moveaxis(PLACES[mask], -1, 1)
        legend = scaled(np.moveaxis(PLACES.reshape(2, 2, 3), -1, 0), 40)
        title = "colours: the place of the largest value in its 2x2 window"
        index = view.model.stack.index(pool)
        lines = [
            f"layer {index}: {count} masks of {height}x{width} of {view.focus_name}",
            view.heading,
        ]
        body = beside([tiles(colours, grid), legend], 24, 0)
        yield Picture(
            name=f"masks_{number}" if len(pools) > 1 else "masks",
            shows=f"pooling masks of layer {index} for one image: the place in each window",
            image=page(f"Pooling masks {number} of {len(pools)}", lines, panel(title, body)),
        )
