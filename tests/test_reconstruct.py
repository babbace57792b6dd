"""Reconstructing images block by block, and image files."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cae_raw.backends import NumpyBackend
from cae_raw.data.scaling import to_bytes, to_floats
from cae_raw.errors import InputError
from cae_raw.layers import Conv2d, Flatten, Linear, ReLU, Tanh, Unflatten
from cae_raw.models import Autoencoder, single_layer
from cae_raw.models.inference import reconstruct
from cae_raw.reconstruct import BLOCK_BYTES, reconstruct_image, reconstructed_blocks
from cae_raw.reconstruct_files import FileResult, reconstruct_files


def narrow(channels: int = 3) -> Autoencoder:
    return single_layer(channels, 8, np.random.default_rng(0))


def padded_inside() -> Autoencoder:
    """Zero padding in the middle of the stack, and no bound on the outputs."""
    rng = np.random.default_rng(1)
    layers = Conv2d(3, 6, 5, padding=2, rng=rng), ReLU(), Conv2d(6, 3, 3, padding=1, rng=rng)
    return Autoencoder(*layers, encoder_length=2, channels=3, value_range=(0, 1), halo=3)


def pointwise() -> Autoencoder:
    rng = np.random.default_rng(2)
    layers = Conv2d(3, 5, 1, rng=rng), Tanh(), Conv2d(5, 3, 1, rng=rng)
    return Autoencoder(*layers, encoder_length=2, channels=3, halo=0)


def one_size() -> Autoencoder:
    rng = np.random.default_rng(3)
    layers = Flatten(), Linear(3 * 6 * 5, 4, rng=rng), Linear(4, 3 * 6 * 5, rng=rng)
    return Autoencoder(*layers, Unflatten((3, 6, 5)), encoder_length=2, channels=3)


def noise(channels: int, height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (channels, height, width), dtype=np.uint8)


def in_one_piece(model: Autoencoder, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    y: NDArray[np.float32] = model.forward(to_floats(image, model.value_range)[None])[0]
    return y


def assert_same_pixels(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    """But for the few that the last bit of a float decides."""
    differences = np.abs(found.astype(int) - expected)
    assert differences.max(initial=0) <= 1
    assert np.count_nonzero(differences) <= 1 + found.size // 1000


# --- one image ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [narrow, padded_inside, pointwise])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 200), (131, 2), (33, 31), (64, 65), (101, 167)]
)
def test_blocks_make_up_the_whole_image(
    make: Callable[[], Autoencoder], height: int, width: int
) -> None:
    model, image = make(), noise(3, height, width)
    output = np.full(image.shape, nan, np.float32)
    covered = np.zeros((height, width), int)
    for (rows, columns), x, y in reconstructed_blocks(model, image, block_bytes=1):
        np.testing.assert_array_equal(
            x, to_floats(image[:, rows, columns], model.value_range), strict=True
        )
        output[:, rows, columns] = y
        covered[rows, columns] += 1
    assert (covered == 1).all()
    expected = in_one_piece(model, image)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)
    assert_same_pixels(to_bytes(output, model.value_range), to_bytes(expected, model.value_range))


def test_a_halo_that_is_too_small_would_show() -> None:
    model, image = narrow(), noise(3, 80, 80)
    model.halo = 1
    expected = in_one_piece(model, image)
    worst = max(
        float(np.abs(y - expected[:, rows, columns]).max())
        for (rows, columns), _, y in reconstructed_blocks(model, image, block_bytes=1)
    )
    assert worst > 1e-3


def test_all_windows_of_an_image_have_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = narrow(), []

    def recorded(model: Autoencoder, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        shapes.append(images.shape)
        return reconstruct(model, images)

    monkeypatch.setattr("cae_raw.reconstruct.reconstruct", recorded)
    assert len(list(reconstructed_blocks(model, noise(3, 101, 167), block_bytes=1))) == 4 * 6
    assert len(set(shapes)) == 1


def test_memory_does_not_grow_with_the_image() -> None:
    model = single_layer(3, 32, np.random.default_rng(0))
    image = noise(3, 900, 1200)  # about 400 MB of maps in one piece
    tracemalloc.start()
    try:
        result = reconstruct_image(model, image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < result.output.nbytes + result.error.nbytes + 1.5 * BLOCK_BYTES


def test_figures_come_from_the_floats() -> None:
    model, image = narrow(), noise(3, 300, 400)
    result = reconstruct_image(model, image)
    x, y = to_floats(image, (-1, 1)), in_one_piece(model, image)
    mse = float(np.mean(np.square(y - x, dtype=np.float64)))
    assert result.figures.mse == pytest.approx(mse, rel=1e-6)
    assert result.figures.half_mse == result.figures.mse / 2
    assert result.figures.psnr == pytest.approx(10 * np.log10(4 / mse))
    assert_same_pixels(result.output, to_bytes(y, (-1, 1)))
    assert np.mean(result.error.astype(float) ** 2) == pytest.approx(mse * 127.5**2, rel=1e-5)
    assert result.image is image and not result.not_finite


def test_the_work_is_done_on_the_models_backend() -> None:
    class Counting(NumpyBackend):
        here = there = 0

        def asarray(self, host: np.ndarray) -> Any:
            self.there += 1
            return super().asarray(host).copy()

        def to_numpy(self, array: np.ndarray) -> np.ndarray:
            self.here += 1
            return super().to_numpy(array)

    image, backend = noise(3, 70, 20), Counting()
    expected = reconstruct_image(narrow(), image)
    model = narrow()
    model.to(backend)
    backend.here = backend.there = 0
    assert_same_pixels(reconstruct_image(model, image).output, expected.output)
    assert backend.here == 1 and backend.there


def test_a_model_of_one_size() -> None:
    model, image = one_size(), noise(3, 6, 5)
    expected = to_bytes(in_one_piece(model, image), (-1, 1))
    np.testing.assert_array_equal(reconstruct_image(model, image).output, expected)
    with pytest.raises(InputError):
        reconstruct_image(model, noise(3, 7, 5))
    with pytest.raises(InputError):
        reconstruct_image(narrow(), noise(1, 7, 5))


# --- files ----------------------------------------------------------------------------------


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(len(mode), size[1], size[0]).transpose(1, 2, 0)
    Image.fromarray(pixels.squeeze(-1) if mode == "L" else pixels).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def read(path: Path | None) -> NDArray[np.uint8]:
    assert path is not None
    with Image.open(path) as image:
        pixels: NDArray[np.uint8] = np.asarray(image).transpose(2, 0, 1)
    return pixels


def test_pictures_are_written_beside_the_image(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.b.png")
    before = path.read_bytes()
    (result,) = reconstruct_files(narrow(), [path])
    assert names(tmp_path) == ["a.b.comparison.png", "a.b.png", "a.b.reconstruction.png"]
    expected = reconstruct_image(narrow(), read(path))
    np.testing.assert_array_equal(read(result.reconstruction), expected.output)
    assert read(result.comparison).shape[1] > 200
    assert path.read_bytes() == before
    again = reconstruct_files(narrow(), [path, path])
    assert again == [result], "the same again, once, under the same names"
    assert len(names(tmp_path)) == 3
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == {
        "path": str(path),
        "error": None,
        "reconstruction": str(tmp_path / "a.b.reconstruction.png"),
        "comparison": str(tmp_path / "a.b.comparison.png"),
        "width": 12,
        "height": 10,
        "half_mse": expected.figures.half_mse,
        "mse": expected.figures.mse,
        "psnr": expected.figures.psnr,
        "notes": [],
    }


def test_equal_names_are_numbered(tmp_path: Path) -> None:
    paths = [picture(tmp_path / place) for place in ("x/a.png", "y/a.png", "z/a.bmp")]
    results = reconstruct_files(narrow(), paths, tmp_path / "out" / "deep")
    assert [r.reconstruction and r.reconstruction.name for r in results] == [
        "a.reconstruction.png",
        "a-2.reconstruction.png",
        "a-3.reconstruction.png",
    ]
    assert len(names(tmp_path / "out" / "deep")) == 6


def test_no_input_is_ever_replaced(tmp_path: Path) -> None:
    """Inputs that bear the names of outputs: as they are, through links, by another path."""
    plain = picture(tmp_path / "a.png")
    named = picture(tmp_path / "a.reconstruction.png", size=(3, 3))
    hidden = picture(tmp_path / "elsewhere" / "original.png", size=(4, 4))
    (tmp_path / "a-2.comparison.png").symlink_to(hidden)
    linked = picture(tmp_path / "elsewhere" / "hard.png", size=(5, 5))
    os.link(linked, tmp_path / "a-3.comparison.png")
    real = picture(tmp_path / "a-4.reconstruction.png", size=(6, 6))
    (tmp_path / "link.png").symlink_to(real)
    (tmp_path / "folder").symlink_to(tmp_path)
    inputs = [plain, tmp_path / "folder" / named.name, tmp_path / "a-2.comparison.png", linked]
    inputs.append(tmp_path / "link.png")
    before = [p.read_bytes() for p in inputs]
    results = reconstruct_files(narrow(), inputs)
    assert not any(r.error for r in results)
    assert [p.read_bytes() for p in inputs] == before
    assert inputs[2].is_symlink()
    assert hidden.read_bytes() == before[2]
    assert results[0].reconstruction == tmp_path / "a-5.reconstruction.png"
    assert len({r.reconstruction for r in results}) == len(results)


def test_a_broken_file_does_not_stop_the_others(tmp_path: Path) -> None:
    good = [picture(tmp_path / "a.png"), picture(tmp_path / "c.png")]
    broken, missing = tmp_path / "b.png", tmp_path / "nothing.png"
    broken.write_bytes(good[0].read_bytes()[:60])
    seen: list[FileResult] = []
    paths = [good[0], broken, missing, good[1]]
    results = reconstruct_files(narrow(), paths, on_result=seen.append)
    assert seen == results
    assert [r.path for r in results] == paths
    assert [r.error is None for r in results] == [True, False, False, True]
    for result in results[1:3]:
        message = result.error or ""
        assert str(result.path) in message and "\n" not in message
        assert result.to_json()["mse"] is None
    assert (tmp_path / "c.comparison.png").exists()
    assert not list(tmp_path.glob("b.*.png")) and not list(tmp_path.glob(".*"))


def test_an_image_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    (result,) = reconstruct_files(one_size(), [path])
    assert result.error is not None and result.error.startswith(f"{path}: ")


def test_a_folder_stands_for_its_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "inner/c.png", "a.comparison.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    results = reconstruct_files(narrow(), [tmp_path], tmp_path / "out")
    assert [r.path.name for r in results] == ["a.JPG", "b.png"]
    (tmp_path / "empty").mkdir()
    (result,) = reconstruct_files(narrow(), [tmp_path / "empty"])
    assert result.error is not None and "no images in the folder" in result.error


def test_channels_are_those_of_the_model(tmp_path: Path) -> None:
    gray, colour = picture(tmp_path / "gray.png", "L"), picture(tmp_path / "colour.png")
    to_rgb, rgb = reconstruct_files(narrow(3), [gray, colour], tmp_path / "rgb")
    assert "repeated" in to_rgb.notes[0] and not rgb.notes
    plain, to_gray = reconstruct_files(narrow(1), [gray, colour], tmp_path / "gray")
    assert "turned to gray" in to_gray.notes[0] and not plain.notes
    output = read(to_gray.reconstruction)
    assert (output[0] == output[1]).all() and (output[0] == output[2]).all()


def test_a_diverged_model_still_gives_pictures(tmp_path: Path) -> None:
    model, path = narrow(), picture(tmp_path / "a.png")
    model.params["2.bias"][1] = nan
    model.params["0.weight"][0] = 3e38
    (result,) = reconstruct_files(model, [path])
    assert result.error is None and "not finite" in result.notes[0]
    assert (read(result.reconstruction)[1] == 0).all()
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["mse"] is None and values["psnr"] is None


def test_an_impossible_output_folder(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    with pytest.raises(InputError, match="cannot make the folder"):
        reconstruct_files(narrow(), [path], path / "out")


def test_a_failed_write_is_the_files_error(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    (tmp_path / "a.comparison.png").mkdir()
    (result,) = reconstruct_files(narrow(), [path])
    assert result.error is not None and "cannot write" in result.error
    assert not list(tmp_path.glob(".*"))
