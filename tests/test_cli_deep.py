"""`cae-raw reconstruct` with models of one size, in tiles, and with images of data sets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import TRAIN, Here, picture
from deep_cases import SIZE, save_model, small_deep
from PIL import Image

from cae_raw.data import DataOptions, load_dataset
from cae_raw.data.image_file import load_image
from cae_raw.fit import fit
from cae_raw.reconstruct import reconstruct_image

RECONSTRUCT = ("reconstruct", "--device", "cpu")
DEEP = ("--checkpoint", "deep.safetensors")
NOTE = "resized from 30x20 to 12x14 pixels (Lanczos, the whole picture, which squashes it)"


@pytest.fixture
def here(here: Here) -> Here:
    save_model(Path("deep.safetensors"), small_deep())
    picture(Path("photo.png"), 20, 30, 3)
    return here


# --- files ----------------------------------------------------------------------------------


def test_images_are_resized_to_the_models_size(here: Here) -> None:
    result = here(*RECONSTRUCT, "photo.png", *DEEP)
    assert (result.status, result.err) == (0, "")
    image, _ = fit(small_deep(), load_image(Path("photo.png")))
    expected = reconstruct_image(small_deep(), image)
    assert result.out.splitlines() == [
        "model: deep.safetensors",
        f"photo.png: 12x14, {expected.figures}",
        "  photo.reconstruction.png",
        "  photo.comparison.png",
        f"  {NOTE}",
    ]
    np.testing.assert_array_equal(load_image(Path("photo.reconstruction.png")), expected.output)


def test_an_image_of_the_models_size_is_left_alone(here: Here) -> None:
    picture(Path("fits.png"), *SIZE, 3)
    report = json.loads(here(*RECONSTRUCT, "fits.png", *DEEP, "--json").out)
    assert report["images"][0]["notes"] == [] and report["tiled"] is False


def test_tiles_keep_the_images_size(here: Here) -> None:
    result = here(*RECONSTRUCT, "photo.png", *DEEP, "--tile", "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    (image,) = report["images"]
    assert report["tiled"] is True
    assert (image["width"], image["height"], image["notes"]) == (30, 20, [])
    expected = reconstruct_image(small_deep(), load_image(Path("photo.png")), tile=True)
    np.testing.assert_array_equal(load_image(Path(image["reconstruction"])), expected.output)
    assert image["mse"] == expected.figures.mse


def test_tiles_are_for_models_of_one_size(here: Here) -> None:
    result = here(*RECONSTRUCT, "photo.png", "--tile")
    assert result.status == 2
    assert result.err == (
        "cae-raw: error: --tile is for models of one image size, but single-layer takes images of "
        "any size as they are: omit --tile\n"
    )
    assert sorted(os.listdir()) == ["deep.safetensors", "photo.png"]


def test_a_gray_deep_model(here: Here) -> None:
    save_model(Path("gray.safetensors"), small_deep("deep-same", 1))
    for tile in ((), ("--tile",)):
        words = (*RECONSTRUCT, "photo.png", "--checkpoint", "gray.safetensors", *tile, "--json")
        result = here(*words)
        assert result.status == 0, result.err
        assert "turned to gray" in json.loads(result.out)["images"][0]["notes"][0]


# --- data sets ------------------------------------------------------------------------------


def pixels(path: str) -> np.ndarray:
    return load_image(Path(path), 3)


def test_the_first_images_of_a_data_set(here: Here) -> None:
    words = (*RECONSTRUCT, "--dataset", "shapes", "--count", 3, "--runs-dir", "none")
    result = here(*words)
    assert (result.status, result.err) == (0, "")
    names = [f"{kind}_000{i}.png" for kind in ("input", "output") for i in (1, 2, 3)]
    assert sorted(os.listdir("reconstructions")) == names
    images = load_dataset("shapes").test.images
    for i in range(3):
        np.testing.assert_array_equal(pixels(f"reconstructions/input_000{i + 1}.png"), images[i])
    lines = result.out.splitlines()
    assert lines[1] == "shapes, test: 3 of 20 images"
    assert lines[2].startswith("reconstructions/input_0001.png, output_0001.png: 32x32, MSE ")
    assert lines[-1].startswith("all 3: MSE ") and len(lines) == 6
    first = json.loads(here(*words, "--json").out)
    assert [image["number"] for image in first["images"]] == [1, 2, 3]
    assert first["images"][2]["name"] == "shapes/test/2" and first["images"][2]["label"] == 2
    mean = np.mean([image["mse"] for image in first["images"]])
    assert first["all"]["mse"] == pytest.approx(mean)


def test_the_runs_own_data_set(here: Here) -> None:
    for i in range(20):
        picture(Path(f"photos/{i}.png"), 12, 10, 3, seed=i)
    train = (*TRAIN, "--dataset", "folder", "--data-dir", "photos", "--size", 8)
    assert here(*train).status == 0
    result = here(*RECONSTRUCT, "--count", 1000, "--split", "train", "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["dataset"] == "folder" and report["split"] == "train"
    expected = load_dataset("folder", DataOptions(Path("photos"), 8)).train
    assert [image["name"] for image in report["images"]] == list(expected.names or ())
    for image, given in zip(report["images"], expected.images, strict=True):
        np.testing.assert_array_equal(pixels(image["input"]), given)
    assert all(image["width"] == 8 for image in report["images"])
    inside = here(*RECONSTRUCT, "--count", 2, "--out", "photos/made")
    assert inside.status == 2
    assert "photos/made lies in the data set's folder" in inside.err
    assert not Path("photos/made").exists()


def test_a_data_set_of_another_size_and_colour(here: Here) -> None:
    save_model(Path("gray.safetensors"), small_deep("deep", 1))
    words = (*RECONSTRUCT, "--checkpoint", "gray.safetensors", "--count", 2, "--json")
    report = json.loads(here(*words).out)
    assert report["dataset"] == "shapes", "what the checkpoint's run was trained on"
    for image in report["images"]:
        assert (image["width"], image["height"]) == (12, 14)
        assert "turned to gray" in image["notes"][0] and "resized from 32x32" in image["notes"][1]
    with Image.open("reconstructions/input_0001.png") as made:
        assert made.size == (12, 14)
    tiled = json.loads(here(*words, "--tile", "--out", "tiles").out)
    for image in tiled["images"]:
        assert (image["width"], image["height"]) == (32, 32)
        assert len(image["notes"]) == 1
    with Image.open("tiles/output_0002.png") as made:
        assert made.size == (32, 32)


def test_folder_takes_the_size_of_the_model(here: Here) -> None:
    save_model(Path("square.safetensors"), small_deep(size=(16, 16)))
    for i in range(9):
        picture(Path(f"photos/{i}.png"), 30, 20, 3, seed=i)
    words = (*RECONSTRUCT, "--dataset", "folder", "--data-dir", "photos", "--json")
    square = json.loads(here(*words, "--checkpoint", "square.safetensors").out)
    assert all(image["notes"] == [] and image["width"] == 16 for image in square["images"])
    result = here(*words, *DEEP)
    assert result.status == 2 and "the data set folder needs --size" in result.err


REFUSED: list[tuple[str, str]] = [
    ("", "name image files, or take those of a data set with --dataset or --count"),
    ("photo.png --count 3", "image files and --dataset or --count name images: give one of them"),
    ("photo.png --dataset shapes", "image files and --dataset or --count name images: give one"),
    ("photo.png --split test", "--split needs --dataset or --count to have an effect"),
    ("photo.png --size 8", "--size needs --dataset or --count to have an effect"),
    ("photo.png --data-dir .", "--data-dir needs --dataset or --count to have an effect"),
    ("--count 0", "--count must be from 1 to 2147483647, not 0"),
    ("--count -3", "--count must be from 1 to 2147483647, not -3"),
    (f"--count {'9' * 400}", "--count must be from 1 to 2147483647, not 999"),
    ("--dataset imagenet", "unknown data set 'imagenet': choose one of "),
    ("--count 1 --split all", "unknown split 'all': choose one of test, train, validation"),
    ("--dataset shapes --size 8", "--size needs --dataset folder or lmdb to have an effect"),
    ("--dataset folder --size 0 --data-dir .", "--size must be from 1 to 2048, not 0"),
    ("--dataset shapes --data-dir .", "shapes are drawn, not read from --data-dir"),
    ("--count 1 --out photo.png", "cannot make the folder photo.png: File exists"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words[:30] for words, _ in REFUSED])
def test_what_is_refused(here: Here, words: str, message: str) -> None:
    result = here("reconstruct", *words.split(), *DEEP)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1 and message in result.err, result.err
    assert sorted(os.listdir()) == ["deep.safetensors", "photo.png"]


def test_nothing_is_read_to_refuse_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("no model is needed to see that this cannot be done")

    monkeypatch.setattr("cae_raw.commands.reconstruct.choose_model", loaded)
    assert here(*RECONSTRUCT, "--count", 0).status == 2
    assert here(*RECONSTRUCT, "photo.png", "--split", "test").status == 2
