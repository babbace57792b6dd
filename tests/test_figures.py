"""The pictures of a model: which there are, and that their pixels mean what their scales say."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runner import ROOT
from numpy.typing import NDArray
from PIL import Image

from cae_raw.data import shapes
from cae_raw.errors import InputError
from cae_raw.layers import Conv2d, MaxPool2d
from cae_raw.models import Autoencoder, build
from cae_raw.pictures.activations import PLACES, _divisor_near
from cae_raw.pictures.curves import curves_chart
from cae_raw.pictures.figures import FIGURES, WITHOUT_IMAGES, pictures
from cae_raw.pictures.filters import colours_of
from cae_raw.pictures.heatmap import COLOURS, NOT_FINITE, SIGNED_COLOURS, colorize, colour_bar
from cae_raw.pictures.layout import INK
from cae_raw.pictures.page import GAP, WIDTH, Grid, Picture, Scale
from cae_raw.pictures.view import LONGEST_NAME, View
from cae_raw.training.trainer import EpochRecord

SINGLE = ["encoder_filters", "decoder_filters", "encoder_maps"]
DEEP = [
    *(f"encoder_filters_{i}" for i in (1, 2, 3)),
    *(f"decoder_filters_{i}" for i in (1, 2, 3)),
    *(f"encoder_maps_{i}" for i in (1, 2, 3)),
    *("decoder_maps_1", "decoder_maps_2", "code", "masks_1", "masks_2"),
]
EXPECTED = {"single-layer": SINGLE, "deep": DEEP, "deep-same": DEEP}


def record(epoch: int, train: float, validation: float) -> EpochRecord:
    return EpochRecord(epoch, epoch, 1.0, 1.0, train, validation, 0.1)


def make_view(name: str = "single-layer", channels: int = 3, images: int = 3) -> View:
    rng = np.random.default_rng(3)
    options = {} if name == "single-layer" else {"size": (24, 20), "code_size": 10}
    model = build(name, rng, channels=channels, **options)
    if name == "single-layer":
        pixels = shapes.draw("test", images, 0)[0][:, :channels]
    else:
        pixels = rng.integers(0, 256, (images, channels, 24, 20), np.uint8)
    return View(model, pixels, name="a-run", epoch=2, history=[record(1, 0.2, 0.1)])


def one(view: View, figure: str) -> Picture:
    (picture,) = pictures(view, [figure])
    return picture


def places(picture: NDArray[np.uint8], patch: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Where an image (h, w, 3) stands in a picture (H, W, 3), pixel by pixel: (y, x)."""
    h, w, _ = patch.shape
    rows, columns = picture.shape[0] - h + 1, picture.shape[1] - w + 1
    if min(rows, columns) < 1:
        return []
    packed, wanted = (a.astype(np.int32) @ [65536, 256, 1] for a in (picture, patch))
    could = np.ones((rows, columns), bool)
    for y, x in np.random.default_rng(0).integers(0, (h, w), (24, 2)):  # few places pass these
        could &= packed[y : y + rows, x : x + columns] == wanted[y, x]
    return [
        (int(y), int(x))
        for y, x in np.argwhere(could)
        if np.array_equal(packed[y : y + h, x : x + w], wanted)
    ]


def holds(picture: NDArray[np.uint8], patch: NDArray[np.uint8]) -> bool:
    return bool(places(picture, patch))


def enlarged(colours: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """(3, H, W) as (H * scale, W * scale, 3)."""
    return np.moveaxis(colours.repeat(scale, 1).repeat(scale, 2), 0, -1)


# --- all of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EXPECTED)
def test_every_picture_is_there_and_large_enough(name: str, channels: int) -> None:
    found = list(pictures(make_view(name, channels)))
    wanted = {"reconstructions", *EXPECTED[name], "output", "errors", "curves"}
    assert {picture.name for picture in found} == wanted
    assert len(found) == len(wanted)
    for picture in found:
        array = picture.array()
        assert array.dtype == np.uint8 and array.shape[2] == 3
        assert 700 <= array.shape[1] <= 1.25 * WIDTH and array.shape[0] <= 1250, picture.name
        assert (array[:4] == 255).all() and (array[:, -4:] == 255).all(), "a margin"
        assert picture.shows.isascii() and "\n" not in picture.shows
        for low, high in picture.ranges.values():
            assert low == (-high if low else 0) and high > 0


def test_an_image_of_one_pixel_and_a_large_one() -> None:
    model = build("single-layer", np.random.default_rng(0), channels=3)
    for shape in ((1, 3, 1, 1), (1, 3, 700, 300)):
        for picture in pictures(View(model, np.zeros(shape, np.uint8))):
            assert picture.image.width <= 1.25 * WIDTH and picture.image.height <= 1250


def test_what_a_custom_model_has() -> None:
    """Without an activation, without a decoder's filters of one or three channels."""
    rng = np.random.default_rng(0)
    conv = Conv2d(1, 2, 3, padding=1, rng=rng)
    model = Autoencoder(conv, Conv2d(2, 1, 1, rng=rng), encoder_length=1, channels=1)
    view = View(model, rng.integers(0, 256, (1, 1, 6, 5), np.uint8))
    assert list(one(view, "encoder_maps").ranges) == ["convolution"]
    assert list(one(view, "output").ranges) == ["input", "output", "cut off"]


def test_names_are_checked_before_anything_is_drawn() -> None:
    with pytest.raises(InputError, match="unknown picture 'filters': choose one of code, curves"):
        pictures(make_view(), ["filters"])


def test_without_images_weights_and_history_are_shown() -> None:
    view = View(make_view().model, None, history=[record(1, 0.2, 0.1)])
    assert len(list(pictures(view, WITHOUT_IMAGES))) == len(WITHOUT_IMAGES)
    for name in set(FIGURES) - set(WITHOUT_IMAGES) - {"code", "masks", "decoder_maps"}:
        with pytest.raises(InputError, match="no images to show"):
            list(pictures(view, [name]))


def test_a_view_takes_images_that_fit_only() -> None:
    model = build("deep", np.random.default_rng(0), channels=3, size=24, code_size=4)
    with pytest.raises(InputError, match="no images"):
        View(model, np.empty((0, 3, 24, 24), np.uint8))
    with pytest.raises(InputError):
        View(model, np.empty((1, 3, 40, 24), np.uint8))


def test_names_that_the_font_lacks_or_that_are_long() -> None:
    view = View(make_view().model, None, name="\u0416" + "x" * 200, focus_name="a\nb")
    assert view.name.startswith("?x") and len(view.name) == LONGEST_NAME
    assert view.name.endswith("...") and view.focus_name == "a b"


# --- maps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single-layer", "deep"])
def test_maps_are_those_of_the_layers(name: str) -> None:
    """Layer by layer they are what the model computes, which fuses activations in."""
    view = make_view(name)
    trace: dict = {}
    y = view.model.forward(view.x[:1], trace)
    np.testing.assert_array_equal(view.output_of(len(view.model.stack) - 1), y[0])
    for stage in view.stages:
        if stage.activation is not None:
            before = view.output_of(stage.index)
            after = np.tanh(before) if name == "single-layer" else np.maximum(before, 0)
            np.testing.assert_allclose(view.output_of(stage.index + 1), after, rtol=1e-6)
    for layer in view.model.stack:
        if isinstance(layer, MaxPool2d):
            np.testing.assert_array_equal(view.mask_of(layer), trace[layer][0][0])


def test_every_map_stands_in_its_picture() -> None:
    view = make_view()
    picture = one(view, "encoder_maps")
    tanh, scale = Scale(1.0, signed=True), 3
    assert picture.ranges["after tanh"] == (-1, 1)
    top = picture.ranges["before tanh"][1]
    assert np.quantile(abs(view.output_of(0)), 0.999) <= top
    for i in (0, 17, 31):
        assert holds(picture.array(), enlarged(tanh.colours(view.output_of(1)[i]), scale))
        before = colorize(view.output_of(0)[i], top, signed=True)
        assert holds(picture.array(), enlarged(before, scale))
    other = enlarged(tanh.colours(view.output_of(1)[0] * 0.9), scale)
    assert not holds(picture.array(), other), "the measure tells maps apart"


def test_relu_maps_begin_at_black() -> None:
    ranges = one_of(make_view("deep"), "encoder_maps", "encoder_maps_2").ranges
    assert ranges["before ReLU"][0] < 0 and ranges["after ReLU"][0] == 0


def one_of(view: View, figure: str, name: str) -> Picture:
    return next(picture for picture in pictures(view, [figure]) if picture.name == name)


def test_code_and_masks() -> None:
    view = make_view("deep")
    picture = one(view, "code")
    assert "10 numbers" in picture.shows
    pool = next(layer for layer in view.model.stack if isinstance(layer, MaxPool2d))
    colours = np.moveaxis(PLACES[view.mask_of(pool)[5]], -1, 0)
    image = one_of(view, "masks", "masks_1").array()
    assert any(holds(image, enlarged(colours, scale)) for scale in range(5, 40))


@pytest.mark.parametrize(("number", "wanted", "columns"), [(1568, 53, 56), (7, 3, 3), (1, 1, 1)])
def test_rows_of_a_code(number: int, wanted: int, columns: int) -> None:
    assert _divisor_near(number, wanted) == columns


# --- filters --------------------------------------------------------------------------------


def test_colour_filters_are_the_weights() -> None:
    view = make_view()
    for figure, filters in (
        ("encoder_filters", view.weights(0)),
        ("decoder_filters", view.weights(2).transpose(1, 0, 2, 3)),
    ):
        picture = one(view, figure)
        low, top = picture.ranges["weights"]
        assert low == -top and np.abs(filters).max() <= top <= 2 * np.abs(filters).max()
        assert picture.about == "weights"
        for i in (0, 31):
            levels = np.rint((filters[i] / top + 1) * 127.5).astype(np.uint8)
            np.testing.assert_array_equal(levels, colours_of(filters, top)[i])
            assert holds(picture.array(), enlarged(levels, 57))


def test_gray_filters_are_the_weights() -> None:
    view = make_view(channels=1)
    picture = one(view, "encoder_filters")
    top = picture.ranges["weights"][1]
    colours = colorize(view.weights(0)[20, 0], top, signed=True)
    assert holds(picture.array(), enlarged(colours, 57))


def test_filters_between_maps_are_a_table() -> None:
    """An output map's weights for each input map stand in one column, in order."""
    view = make_view("deep")
    picture = one_of(view, "encoder_filters", "encoder_filters_3")
    weights, top = view.weights(5), picture.ranges["weights"][1]
    assert weights.shape == (24, 12, 3, 3)
    array = picture.array()

    def where(o: int, i: int, scale: int) -> list[tuple[int, int]]:
        return places(array, enlarged(colorize(weights[o, i], top, signed=True), scale))

    scale = next(scale for scale in range(10, 30) if where(4, 7, scale))
    ((y, x),) = where(4, 7, scale)
    step = 3 * scale + GAP
    assert where(4, 8, scale) == [(y + step, x)]
    assert where(5, 7, scale) == [(y, x + step)]


# --- results --------------------------------------------------------------------------------


def test_reconstructions_and_errors_are_those_of_the_model() -> None:
    view = make_view(images=3)
    picture = one(view, "reconstructions").array()
    for pixels in (view.images[2], view.outputs[2]):
        assert any(holds(picture, enlarged(pixels, scale)) for scale in (11, 12, 13))
    mean = np.mean((view.y - view.x) ** 2) / 2
    assert f"{mean:.5f}" in one(view, "reconstructions").shows
    errors = one(view, "errors")
    top = errors.ranges["error in gray levels"][1]
    levels = np.sqrt(np.mean((view.y - view.x) ** 2, axis=1)) * 127.5
    np.testing.assert_allclose(view.errors, levels, rtol=1e-5)
    assert any(
        holds(errors.array(), enlarged(colorize(levels[1].astype(np.float32), top), scale))
        for scale in range(5, 12)
    )


def test_a_diverged_model_is_shown() -> None:
    view = make_view(images=1)
    view.model.parameters[:] = np.nan
    for picture in pictures(view):
        assert picture.image.width > 0
    assert (one(view, "errors").array() == NOT_FINITE).all(-1).any()


# --- scales ---------------------------------------------------------------------------------


def test_scales_are_round_and_symmetric_where_signs_differ() -> None:
    values = np.array([[-0.27, 0.1]], np.float32)
    scale = Scale.of(values, share=1.0)
    assert scale.range == (-0.3, 0.3) and not scale.over
    assert Scale.of(abs(values), share=1.0).range == (0, 0.3)
    assert Scale.of(np.zeros((2, 2), np.float32)).range == (0, 1)
    assert Scale.of(np.array([np.nan, np.inf, -2.0], np.float32)).range == (-2, 2)
    assert Scale.of(np.array([1.0] * 2000 + [9.0], np.float32)).over


def test_signed_colours() -> None:
    ends = colorize(np.array([[-2.0, 0, 2, 5, np.nan]]), 2.0, signed=True)[:, 0].T
    assert ends[0].tolist() == SIGNED_COLOURS[0].tolist()
    assert ends[2].tolist() == ends[3].tolist() == SIGNED_COLOURS[255].tolist()
    assert ends[1].min() > 235, "0 is nearly white"
    assert tuple(ends[4]) == NOT_FINITE
    light = SIGNED_COLOURS @ [0.299, 0.587, 0.114]
    assert (np.diff(light[:128]) > -0.5).all() and (np.diff(light[128:]) < 0.5).all()
    assert abs(light[0] - light[255]) < 20, "both ends are as dark"


def test_a_signed_bar_has_its_ends_where_its_numbers_are() -> None:
    bar = np.asarray(colour_bar(1.0, 300, 24, signed=True))
    line = (bar.shape[0] - 300) // 2
    column = bar[line : line + 300, 5]
    assert column[0].tolist() == SIGNED_COLOURS[255].tolist()
    assert column[-1].tolist() == SIGNED_COLOURS[0].tolist()
    ticks = np.flatnonzero((bar[:, 26] == INK).all(-1)) - line
    assert ticks.tolist() == [0, 75, 150, 224, 299]
    plain = np.asarray(colour_bar(1.0, 300, 24))
    assert plain[line + 299, 5].tolist() == COLOURS[0].tolist()


@pytest.mark.parametrize(
    ("count", "size", "box"),
    [(32, (34, 34), (1450, 350)), (1, (3, 3), (10, 10)), (5, (9, 4), (50, 90))],
)
def test_a_grid_fills_its_box(count: int, size: tuple[int, int], box: tuple[int, int]) -> None:
    grid = Grid.filling(count, *size, box)
    width, height = grid.size(count, *size)
    assert width <= box[0] and height <= box[1]
    for columns in range(1, count + 1):
        larger = Grid(columns, grid.scale + 1).size(count, *size)
        assert larger[0] > box[0] or larger[1] > box[1]


def test_a_grid_of_large_maps_makes_them_smaller() -> None:
    grid = Grid.filling(4, 1000, 1000, (500, 500))
    assert grid.scale < 0 and grid.size(4, 1000, 1000)[0] <= 500


# --- curves ---------------------------------------------------------------------------------


def test_curves_have_a_colour_for_each_run() -> None:
    runs = {f"run {i}": [record(e, 1 / (e + i), 2 / (e + i)) for e in (1, 2, 3)] for i in (1, 2)}
    chart = curves_chart(runs, (800, 500))
    assert chart.size == (800, 500)
    array = np.asarray(chart)
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (array == colour).all(-1).sum() > 500
    assert not (array == (0, 158, 115)).all(-1).any()


def test_curves_of_nothing_and_of_odd_numbers() -> None:
    assert list(pictures(View(make_view().model, None), ["curves"])) == []
    assert curves_chart({}, (300, 200)).size == (300, 200)
    assert curves_chart({"x": [record(1, 0.0, 1e-9), record(2, 1e9, 5.0)]}, (300, 200))


def test_matplotlib_is_quiet_where_nothing_can_be_written(tmp_path: Path) -> None:
    """No message about its caches, no global state, no window system."""
    code = (
        "from cae_raw.pictures.curves import curves_chart; import sys\n"
        "from cae_raw.training.trainer import EpochRecord\n"
        "curves_chart({'': [EpochRecord(1, 1, 1, 1, 1, 1, 1)]}, (300, 200))\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    nowhere = tmp_path / "file"
    nowhere.write_text("a home that is no folder")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "XDG"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**env, "HOME": str(nowhere), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert logging.getLogger("matplotlib").level != logging.ERROR


def test_a_picture_as_an_array() -> None:
    picture = Picture("x", "y", Image.new("RGB", (4, 2), (1, 2, 3)))
    assert picture.array().shape == (2, 4, 3) and picture.array()[0, 0].tolist() == [1, 2, 3]
