"""The decoding rules, one by one, and files that are no good images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cae_raw.data.image_file import load_image, load_square, quiet_pillow
from cae_raw.errors import InputError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (3, 5), np.uint8)
RGB = RNG.integers(0, 256, (3, 5, 3), np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_and_gray_keep_their_channels(tmp_path: Path) -> None:
    rgb = load_image(save(tmp_path / "a.png", Image.fromarray(RGB)))
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    assert np.array_equal(rgb, RGB.transpose(2, 0, 1))
    gray = load_image(save(tmp_path / "b.png", Image.fromarray(GRAY)))
    assert np.array_equal(gray, GRAY[None])


def test_channels_on_request(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    luma = RGB.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(load_image(path, channels=1)[0] - luma).max() <= 0.51
    path = save(tmp_path / "b.png", Image.fromarray(GRAY))
    assert np.array_equal(load_image(path, channels=3), np.stack([GRAY] * 3))
    with pytest.raises(InputError, match="1 or 3"):
        load_image(path, channels=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(GRAY), exif=exif)
    expected = {
        1: GRAY,
        2: GRAY[:, ::-1],
        3: GRAY[::-1, ::-1],
        4: GRAY[::-1],
        5: GRAY.T,
        6: np.rot90(GRAY, -1),
        7: GRAY[::-1, ::-1].T,
        8: np.rot90(GRAY),
    }[orientation]
    assert np.array_equal(load_image(path)[0], expected)


def test_bad_exif_does_not_spoil_good_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GRAY), exif=b"Exif\0\0nonsense")
    assert np.array_equal(load_image(path)[0], GRAY)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_gray(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = save(tmp_path / f"a.{ending}", Image.fromarray(values))
    assert load_image(path).tolist() == [[[0, 0, 1, 1, 128, 255]]]
    assert load_image(path, channels=3).shape == (3, 1, 6)


def test_sixteen_bit_gray_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535 " + np.array([257, 65535], ">u2").tobytes())
    assert load_image(path).tolist() == [[[1, 255]]]


def test_32_bit_gray(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.array([[0, 65535]], np.int32)))
    assert load_image(path).tolist() == [[[0, 255]]]
    for bad in (65536, -1):
        save(path, Image.fromarray(np.array([[0, bad]], np.int32)))
        with pytest.raises(InputError, match=r"outside 0\.\.65535"):
            load_image(path)


def test_float_gray(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))
    assert load_image(path).tolist() == [[[0, 128, 255]]]
    for bad in (1.01, -0.1, np.nan, np.inf):
        save(path, Image.fromarray(np.array([[0, bad]], np.float32)))
        with pytest.raises(InputError, match=r"outside 0\.\.1,"):
            load_image(path)


def test_one_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GRAY > 127))
    assert np.array_equal(load_image(path)[0], np.where(GRAY > 127, 255, 0))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(15)
    path = save(tmp_path / "a.gif", image)
    assert np.array_equal(load_image(path), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_palette_with_transparency_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", image, transparency=0)
    assert load_image(path).transpose(1, 2, 0).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_alpha_lies_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 100, 255], [200, 0, 100, 0], [200, 0, 100, 128]]], np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    loaded = load_image(path).transpose(1, 2, 0)[0]
    expected = pixels[0, :, :3] * (pixels[0, :, 3:] / 255) + 255 * (1 - pixels[0, :, 3:] / 255)
    assert np.abs(loaded - expected).max() <= 1


def test_gray_with_alpha_stays_gray(tmp_path: Path) -> None:
    pixels = np.array([[[200, 255], [200, 0]]], np.uint8)
    path = save(tmp_path / "a.png", _la(pixels))
    assert load_image(path).tolist() == [[[200, 255]]]
    path = save(tmp_path / "b.png", Image.fromarray(GRAY), transparency=int(GRAY[0, 0]))
    assert load_image(path)[0, 0, 0] == 255


def _la(pixels: np.ndarray) -> Image.Image:
    gray, alpha = (Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in (0, 1))
    return Image.merge("LA", (gray, alpha))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.new("CMYK", (2, 2), (255, 0, 0, 0)))
    assert load_image(path)[:, 0, 0].tolist() == [0, 255, 255]


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = (Image.new("L", (2, 2), v) for v in (10, 200))
    path = save(tmp_path / "a.gif", first, save_all=True, append_images=[second])
    assert load_image(path, channels=1)[0, 0, 0] == 10


def png(tmp_path: Path) -> bytes:
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    return save(tmp_path / "good.png", Image.fromarray(noise)).read_bytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda good: b"", "not an image .*empty"),
        (lambda good: b"hello", "not an image"),
        (lambda good: b"<!DOCTYPE html>", "not an image .*web page"),
        (lambda good: good[:2000], "cannot be decoded"),
        (lambda good: good[:500] + b"\0" * 100 + good[600:], "cannot be decoded"),
    ],
)
def test_bad_files(tmp_path: Path, change: Any, expected: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(change(png(tmp_path)))
    with pytest.raises(InputError, match=expected) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png: No such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pillow_limit: int | None
) -> None:
    """A small file that states too many pixels, also where a program lifted Pillow's limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    header = b"P5 13500 13500 255 "
    (tmp_path / "bomb.pgm").write_bytes(header + b"\0")
    with pytest.raises(InputError, match="too large: at most 178956970"):
        load_image(tmp_path / "bomb.pgm")


def test_a_large_image_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its warning and its error limit Pillow warns; here that is an ordinary image."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    assert load_image(path).shape == (3, 3, 5)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 20), (36, 12), (2, 10), (4, 8), (9, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_square_is_the_centre(tmp_path: Path, height: int, width: int, channels: int) -> None:
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    short = min(height, width)
    size = 4 if short % 2 == 0 else short
    resized = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    resized = resized.resize((width * size // short, height * size // short), Image.LANCZOS)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    expected = np.asarray(resized.crop((left, top, left + size, top + size)), np.int64)
    with quiet_pillow():
        square = load_square(path, channels, size)
    assert square.shape == (channels, size, size)
    expected = expected.reshape(size, size, channels).transpose(2, 0, 1)
    assert np.abs(square - expected).max() <= 1


def test_large_jpegs_are_reduced_while_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    pixels = np.broadcast_to(ramp, (600, 800))
    path = save(tmp_path / "a.jpg", Image.fromarray(np.ascontiguousarray(pixels)), quality=95)
    decoded: list[tuple[int, int]] = []
    original = JpegImageFile.load

    def load(self: JpegImageFile) -> Any:
        decoded.append(self.size)
        return original(self)

    monkeypatch.setattr(JpegImageFile, "load", load)
    square = load_square(path, 1, 32)[0].astype(float)
    assert decoded[0] == (100, 75)
    exact = pixels[0, 100:700].reshape(1, 30, 20).mean(2)
    assert abs(square[:, 0].mean() - exact[0, 0]) < 4
    assert abs(square[:, -1].mean() - exact[0, -1]) < 4
    assert np.all(np.diff(square.mean(0)) > 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_images_only_raise_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    ending = data.draw(st.sampled_from(["png", "jpg", "gif", "bmp", "tif", "ppm", "webp"]))
    path = folder / f"x.{ending}"
    content = bytearray(save(path, Image.fromarray(RGB)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        loaded = load_image(path)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
    else:
        assert loaded.ndim == 3
        assert loaded.shape[0] in (1, 3)
