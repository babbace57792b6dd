"""Pictures: bytes and floats, grids, heat maps, comparisons, PNG files; and reported figures."""

from __future__ import annotations

import json
from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cae_raw.data.scaling import scale_and_shift, to_bytes, to_floats
from cae_raw.errors import InputError
from cae_raw.figures import Figures, error_levels, psnr
from cae_raw.ops.batch import gather
from cae_raw.pictures import comparison, grid, reconstructions_grid, save_png
from cae_raw.pictures.heatmap import COLOURS, NOT_FINITE, colorize, colour_bar, scale_top
from cae_raw.pictures.layout import PAPER, integer_scale, resized, table, text, to_image

RANGES = [(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5), (-2.5, 7.0)]
ALL_BYTES = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)


def where(picture: Image.Image, colour: tuple[int, ...]) -> NDArray[np.intp]:
    """Rows and columns (K, 2) of a colour's pixels."""
    return np.argwhere((np.asarray(picture) == colour).all(axis=-1))


# --- scaling --------------------------------------------------------------------------------


@pytest.mark.parametrize("value_range", RANGES)
def test_bytes_survive_the_round_trip(value_range: tuple[float, float]) -> None:
    x = to_floats(ALL_BYTES, value_range)
    assert x.dtype == np.float32
    np.testing.assert_allclose([x.min(), x.max()], value_range, rtol=1e-6)
    np.testing.assert_array_equal(to_bytes(x, value_range), ALL_BYTES)
    np.testing.assert_array_equal(to_bytes(x.astype(np.float64), value_range), ALL_BYTES)


@pytest.mark.parametrize("value_range", RANGES)
def test_floats_are_those_of_a_batch(value_range: tuple[float, float]) -> None:
    scale, shift = scale_and_shift(value_range)
    batch = gather(ALL_BYTES[None], np.array([0]), scale=scale, shift=shift)
    np.testing.assert_array_equal(to_floats(ALL_BYTES[None], value_range), batch)


def test_bytes_are_the_nearest() -> None:
    x = np.array([10.4, 10.6, -3, 300, inf, -inf, nan, 3e38], np.float32)
    assert to_bytes(x, (0, 255)).tolist() == [10, 11, 0, 255, 255, 0, 0, 255]
    assert to_bytes(x[-1:], (0, 1)).tolist() == [255]
    assert x[0] == np.float32(10.4), "the input must stay as it is"


@pytest.mark.parametrize("value_range", [(1, 1), (1, 0), (nan, 1), (0, inf)])
def test_impossible_ranges(value_range: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="value range"):
        scale_and_shift(value_range)


# --- figures --------------------------------------------------------------------------------


def test_figures_of_a_known_error() -> None:
    figures = Figures.from_squared_error(0.5, 50, (-1, 1))
    assert figures.mse == pytest.approx(0.01)
    assert figures.half_mse == pytest.approx(0.005)
    assert figures.psnr == pytest.approx(10 * np.log10(4 / 0.01))
    assert str(figures) == "MSE 0.01, PSNR 26.02 dB"
    with pytest.raises(InputError, match="no images"):
        Figures.from_squared_error(0, 0, (-1, 1))


def test_figures_that_json_lacks() -> None:
    assert psnr(0, (0, 1)) == inf
    assert psnr(inf, (0, 1)) == -inf
    assert isnan(psnr(nan, (0, 1)))
    perfect, broken = (Figures.from_squared_error(total, 1, (0, 1)) for total in (0, nan))
    assert json.dumps(perfect.to_json(), allow_nan=False) == (
        '{"half_mse": 0.0, "mse": 0.0, "psnr": null}'
    )
    assert set(broken.to_json().values()) == {None}
    assert [str(perfect), str(broken)] == ["MSE 0, PSNR infinite", "MSE not a finite number"]


def test_error_levels_belong_to_the_mse() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 3, 7, 5))
    levels = error_levels(y, x, (-1, 1))
    assert levels.shape == (7, 5)
    assert np.mean(levels**2) == pytest.approx(np.mean((y - x) ** 2) * 127.5**2)
    assert error_levels(np.full((1, 1, 1), 3.0), np.full((1, 1, 1), 1.0), (0, 1))[0, 0] == 510


# --- layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((1, 1), 256),
        ((28, 28), 9),
        ((3, 100), 3),
        ((256, 5), 1),
        ((800, 800), 1),
        ((801, 2), -2),
        ((3000, 4000), -5),
    ],
)
def test_integer_scale(size: tuple[int, int], scale: int) -> None:
    assert integer_scale(size, 256, 800) == scale


def test_scaling_repeats_or_averages_pixels() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 6) * 20
    image = to_image(pixels)
    assert image.mode == "RGB"
    large = np.asarray(resized(image, 3))[..., 0]
    np.testing.assert_array_equal(large, pixels[0].repeat(3, 0).repeat(3, 1))
    small = np.asarray(resized(image, -2))[..., 0]
    np.testing.assert_array_equal(small, [[70, 110, 150]])


def test_a_table_aligns_pieces_of_any_size() -> None:
    red, blue = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (4, 6), (0, 0, 255))
    picture = table([[red, blue], [blue]], (3, 1), (1, 0))
    assert picture.size == (4 + 3 + 4, 6 + 1 + 6)
    assert where(picture, (255, 0, 0)).tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert np.unique(where(picture, (0, 0, 255))[:, 1]).tolist() == [0, 1, 2, 3, 7, 8, 9, 10]


def test_text_shows_every_sign_that_is_used() -> None:
    missing = text("\u0416").tobytes()
    for sign in "abcdefghijklmnopqrstuvwxyzMSEPNR0123456789.,:/+-()":
        assert text(sign).tobytes() != missing, sign
    assert text("input").height == text("gray").height


# --- grids ----------------------------------------------------------------------------------


def flat(colours: list[tuple[int, int, int]], height: int, width: int) -> NDArray[np.uint8]:
    values = np.array(colours, np.uint8)[:, :, None, None]
    return np.ascontiguousarray(np.broadcast_to(values, (len(colours), 3, height, width)))


def test_reconstructions_stand_under_their_inputs() -> None:
    first = [(200, 10 * i, 7) for i in range(5)]
    second = [(90, 10 * i, 7) for i in range(5)]
    picture = reconstructions_grid(flat(first, 20, 28), flat(second, 20, 28), columns=3)
    above = [where(picture, colour) for colour in first]
    under = [where(picture, colour) for colour in second]
    for places in above + under:
        assert len(places) == 28 * 20 * 4**2, "each pixel is a square of 4 x 4"
    for a, u in zip(above, under, strict=True):
        assert a[:, 1].min() == u[:, 1].min()
        assert a[:, 0].max() < u[:, 0].min() <= a[:, 0].max() + 10
    assert above[3][:, 0].min() > under[0][:, 0].max(), "the second block is below the first"
    assert above[3][:, 1].min() == above[0][:, 1].min()
    ink = np.argwhere(np.asarray(picture).max(axis=-1) < 80)
    assert ink.size and ink[:, 1].max() < above[0][:, 1].min(), "labels stand left of the images"


def test_grids_take_gray_and_large_images() -> None:
    gray = np.full((3, 1, 600, 300), 77, np.uint8)
    picture = grid(gray, columns=2)
    assert len(where(picture, (77, 77, 77))) == 3 * 200 * 100


def test_grids_refuse_what_they_cannot_show() -> None:
    with pytest.raises(InputError, match="no images"):
        grid(np.zeros((0, 1, 2, 2), np.uint8))
    with pytest.raises(InputError, match="differ"):
        reconstructions_grid(np.zeros((1, 1, 2, 2), np.uint8), np.zeros((1, 3, 2, 2), np.uint8))


# --- heat maps ------------------------------------------------------------------------------


def test_the_colour_map_is_perceptually_even() -> None:
    """CIE lightness (L*, of sRGB at D65) rises all the way and stays near a straight line."""
    linear = np.where(
        COLOURS <= 0.04045 * 255, COLOURS / 255 / 12.92, ((COLOURS / 255 + 0.055) / 1.055) ** 2.4
    )
    y = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)
    assert (np.diff(lightness[::4]) > 0).all()
    assert np.abs(lightness - np.linspace(0, 98, 256)).max() < 6
    assert NOT_FINITE not in {tuple(colour) for colour in COLOURS.tolist()}


def test_colours_of_numbers() -> None:
    colours = colorize(np.array([[0, 5, 10], [99, nan, inf]]), 10)
    assert colours.shape == (3, 2, 3) and colours.dtype == np.uint8
    table_rows = [COLOURS[0], COLOURS[128], COLOURS[255], COLOURS[255], NOT_FINITE, NOT_FINITE]
    np.testing.assert_array_equal(colours.reshape(3, 6).T, np.array(table_rows))


@pytest.mark.parametrize(
    ("largest", "top"), [(0, 1), (0.3, 1), (1, 1), (1.1, 2), (17, 20), (20, 20), (51, 100)]
)
def test_scales_end_at_round_numbers(largest: float, top: float) -> None:
    assert scale_top(np.full((4, 4), largest)) == top


def test_scales_ignore_outliers_and_gaps() -> None:
    values = np.full(1000, 4.0)
    values[:3] = 200
    values[3:200] = nan
    assert scale_top(values) == 5
    assert scale_top(np.full(3, nan)) == 1
    assert scale_top(np.full(3, 0.003), least=1e-6) == 0.005


def test_the_bar_shows_the_whole_map_upwards() -> None:
    bar = np.asarray(colour_bar(20, 256, 16))
    column = bar[:, 0]
    shown = column[(column != PAPER).any(axis=-1)]
    np.testing.assert_array_equal(shown, COLOURS[::-1])
    assert colour_bar(20, 256, 16, over=True).width > bar.shape[1]


# --- comparisons ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (28, 28), (1, 900), (1000, 2), (1500, 2000)])
def test_comparisons_of_any_size(channels: int, height: int, width: int) -> None:
    image = np.full((channels, height, width), 60, np.uint8)
    output = np.full((channels, height, width), 120, np.uint8)
    error = np.full((height, width), 60.0, np.float32)
    picture = comparison(image, output, error, Figures(0.1, 0.2, 13.0))
    assert 300 < picture.width < 3000 and 100 < picture.height < 1200
    scale = integer_scale((height, width), 256, 800)
    side = [-(-v // -scale) if scale < 0 else v * scale for v in (height, width)]
    heat = tuple(int(v) for v in colorize(error[:1, :1], 100).ravel())
    assert len(where(picture, (120, 120, 120))) >= side[0] * side[1]
    panels = [where(picture, colour) for colour in ((60,) * 3, (120,) * 3, heat)]
    for places in panels:
        assert len(places) >= side[0] * side[1]
    left, middle, right = (float(np.median(places[:, 1])) for places in panels)
    assert left < middle < right


def test_a_comparison_marks_what_is_not_finite() -> None:
    image = np.zeros((1, 32, 32), np.uint8)
    error = np.zeros((32, 32), np.float32)
    figures = Figures(nan, nan, nan)
    plain = comparison(image, image, error, figures)
    error[3, 4] = nan
    marked = comparison(image, image, error, figures)
    assert len(where(marked, NOT_FINITE)) == 8 * 8
    assert not len(where(plain, NOT_FINITE))
    assert marked.height > plain.height, "one more line of caption"


# --- files ----------------------------------------------------------------------------------


def test_png_files_hold_the_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7), dtype=np.uint8)
    save_png(to_image(pixels), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), pixels.transpose(1, 2, 0))
    with pytest.raises(InputError, match="cannot write"):
        save_png(to_image(pixels), tmp_path / "missing" / "a.png")
