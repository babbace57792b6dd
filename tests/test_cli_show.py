"""`cae-raw show`: which files it writes, of which image, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import TRAIN, Here, isolate, picture
from PIL import Image

from cae_raw.app import main
from cae_raw.commands import show as command
from cae_raw.data import shapes
from cae_raw.data.access import find_image
from cae_raw.data.base import Split
from cae_raw.errors import InputError
from cae_raw.pictures.figures import FIGURES
from cae_raw.pictures.page import Scale
from cae_raw.pictures.view import View
from cae_raw.training.loading import load
from cae_raw.training.run_dir import RunDir
from cae_raw.training.trainer import EpochRecord

RUN = Path("runs/single-layer/shapes_adam_lr=0.001_b=16_f=2")
SINGLE = {
    *("reconstructions", "encoder_filters", "decoder_filters", "encoder_maps"),
    *("output", "errors", "curves"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a single-layer run and a deep one, of one epoch each."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder)
        for words in (
            TRAIN,
            (*TRAIN[:5], "--model", "deep", "--code-size", "4", "--no-tensorboard"),
        ):
            with pytest.raises(SystemExit) as end:
                main(words)
            assert end.value.code == 0
    return folder


@pytest.fixture
def here(here: Here, trained: Path) -> Here:
    shutil.copytree(trained, Path("."), dirs_exist_ok=True)
    return here


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """The views that a command makes."""
    found: list[View] = []

    class Remembered(View):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            found.append(self)

    monkeypatch.setattr(command, "View", Remembered)
    return found


def test_every_picture_of_a_run(here: Here, views: list[View]) -> None:
    result = here("show", RUN, "--json", "--device", "cpu")
    assert result.status == 0
    report = json.loads(result.out)
    assert (report["model"], report["epoch"]) == (str(RUN), 1)
    assert report["image"].startswith("test image 0 (")
    written = {entry["name"]: entry for entry in report["pictures"]}
    assert set(written) == SINGLE
    assert {path.stem for path in (RUN / "pictures").iterdir()} == SINGLE
    for name, entry in written.items():
        assert f"{entry['path']}: {entry['shows']}" in result.err
        with Image.open(entry["path"]) as image:
            assert image.size == (entry["width"], entry["height"])
            assert image.info["Title"] == name and image.info["Description"] == entry["shows"]
            assert json.loads(image.info["Ranges"]) == entry["ranges"]
    weights = load(RUN).params["0.weight"]
    scale = Scale.of(weights, share=1.0)
    assert written["encoder_filters"]["ranges"]["weights"] == [-scale.top, scale.top]
    (view,) = views
    np.testing.assert_array_equal(view.images, shapes.draw("test", 16, 0)[0])


def test_every_picture_of_a_deep_run(here: Here) -> None:
    (run,) = Path("runs/deep").iterdir()
    result = here("show", run, "--device", "cpu", "--out", "slides/deep")
    assert result.status == 0
    found = {path.stem for path in Path("slides/deep").iterdir()}
    assert {name.rstrip("_123") for name in found} == set(FIGURES)
    assert len(found) == 18 and result.out.count("slides/deep") == 18


def test_the_newest_run_is_the_default(here: Here) -> None:
    (RUN / "best.safetensors").touch()
    result = here("show", "--only", "curves", "--device", "cpu")
    assert result.status == 0 and result.out.splitlines()[0] == f"model: {RUN}, epoch 1"
    assert [path.name for path in (RUN / "pictures").iterdir()] == ["curves.png"]


def test_an_image_needs_no_data_set(
    here: Here, views: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_data(*_: object) -> None:
        raise AssertionError("the data set was asked for")

    monkeypatch.setattr(command, "choose_dataset", no_data)
    picture(Path("gray.png"), 40, 30)
    result = here("show", RUN, "--image", "gray.png", "--device", "cpu")
    assert result.status == 0 and "maps and output of gray.png" in result.out
    assert "a gray image for a model of RGB images" in result.out
    assert views[0].images.shape == (1, 3, 40, 30) and views[0].focus_name == "gray.png"
    assert here("show", "--only", "curves", "--device", "cpu", RUN).status == 0
    result = here("show", RUN, "--only", "encoder_filters", "--device", "cpu")
    assert result.status == 0 and "maps and output" not in result.out


def test_a_large_image_is_made_smaller(here: Here, views: list[View]) -> None:
    picture(Path("large.png"), 600, 1200, 3)
    words = ("--image", "large.png", "--only", "errors", "--json", "--device", "cpu")
    report = json.loads(here("show", RUN, *words).out)
    assert views[0].images.shape == (1, 3, 256, 512)
    assert report["notes"] == [
        "resized from 1200x600 to 512x256 pixels (Lanczos, the whole picture)"
    ]
    (run,) = Path("runs/deep").iterdir()
    assert here("show", run, *words).status == 0
    assert views[1].images.shape[2:] == views[1].model.image_size


def test_images_by_place_class_and_split(here: Here, views: list[View]) -> None:
    labels = shapes.draw("test", 20, 0)[1]
    kinds = list(shapes.KINDS)
    places = np.flatnonzero(labels == 2)
    for words, number in (
        (("--index", 18), 18),
        (("--class", kinds[2]), places[0]),
        (("--class", kinds[2], "--index", 1), places[1]),
        (("--split", "validation", "--index", 3), 3),
    ):
        split = "validation" if "validation" in words else "test"
        images, labels = shapes.draw(split, {"test": 20, "validation": 8}[split], 0)
        report = json.loads(
            here("show", RUN, *words, "--only", "errors", "--json", "--device", "cpu").out
        )
        assert report["image"] == f"{split} image {number} ({kinds[labels[number]]})"
        shown = views[-1].images
        np.testing.assert_array_equal(shown[0], images[number])
        others = np.delete(images, number, 0)[:15]
        np.testing.assert_array_equal(shown[1:], others)


def test_finding_an_image_reads_on_until_it_is_there() -> None:
    images = np.arange(2500, dtype=np.uint8).reshape(2500, 1, 1, 1)
    split = Split(images, np.arange(2500, dtype=np.int64) % 7)
    found = find_image(split, 2400)
    assert found is not None and (found.number, found.label) == (2400, 2400 % 7)
    assert found.pixels.item() == 2400 % 256
    found = find_image(split, 300, 3)
    assert found is not None and (found.number, found.label) == (300 * 7 + 3, 3)
    assert find_image(split, 2500) is None and find_image(split, 0, 9) is None
    unlabelled = Split(images, None)
    assert find_image(unlabelled, 0, 1) is None
    found = find_image(unlabelled, 1)
    assert found is not None and found.label is None


def test_a_checkpoint_file(here: Here, views: list[View]) -> None:
    result = here("show", "--checkpoint", RUN / "best.safetensors", "--device", "cpu")
    assert result.status == 0
    assert {path.stem for path in Path("pictures").iterdir()} == SINGLE
    assert [record.epoch for record in views[0].history] == [1]


def test_the_history_of_a_run_is_that_of_all_epochs(here: Here, views: list[View]) -> None:
    """The best checkpoint knows the epochs before it only."""
    run = RunDir(RUN)
    (first,) = run.read_metrics()
    later = [*run.read_metrics(), first.__class__(**{**vars(first), "epoch": 2})]
    run.write_metrics(later)
    assert here("show", RUN, "--only", "curves", "--device", "cpu").status == 0
    assert views[0].history == later


def test_metrics_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.read_metrics() == []
    history = [EpochRecord(1, 3, 1.5, 100.0, 0.25, 0.125, 1e-3)]
    run.write_metrics(history)
    assert run.read_metrics() == history
    for damage in (b"epoch,step\n1,1\n", b"epoch,nonsense\n1,1\n", b"\xff\xfe", b"epoch\nx\n"):
        run.metrics.write_bytes(damage)
        with pytest.raises(InputError, match=r"metrics\.csv"):
            run.read_metrics()
