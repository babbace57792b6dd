"""`cae-raw classify`: what it says and writes, from shapes, folders and databases."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_runner import TRAIN, Here, command, heed_ctrl_c, isolate, picture
from PIL import Image

from cae_raw.app import main
from cae_raw.classify import load_classifier
from cae_raw.data import shapes

RUN = Path("runs/single-layer/shapes_adam_lr=0.001_b=16_f=2")
CLASSIFY = ("classify", "--device", "cpu", "--epochs", "3", "--batch-size", "8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "here"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder)
        with pytest.raises(SystemExit) as end:
            main(TRAIN)
        assert end.value.code == 0
    return folder


@pytest.fixture
def here(here: Here, trained: Path) -> Here:
    shutil.copytree(trained, Path("."), dirs_exist_ok=True)
    return here


def class_folders(folder: Path, n: int = 20, size: int = 12) -> None:
    """Dark and bright pictures in a folder each, of other sizes than they are read at."""
    for i in range(n):
        for name, level in (("dark", 40), ("bright $", 200)):
            pixels = np.random.default_rng(i).integers(-30, 30, (size, size + i % 3, 3)) + level
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_the_runs_own_data_set(here: Here) -> None:
    result = here(*CLASSIFY)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == f"model: {RUN}"
    assert lines[1] == (
        "shapes: 40 training images of 3x32x32, 8 validation, 20 test; 12 classes; on cpu"
    )
    assert lines[2] == "features: 32 of each image, the maxima of 2 maps over 4x4 windows"
    assert [line[:22] for line in lines[3:6]] == [f"linear layer, epoch {i}/" for i in (1, 2, 3)]
    assert any(line.startswith("test accuracy ") for line in lines)
    assert sum(line.startswith("  ") and line.endswith("%") for line in lines) == 12
    folder = RUN / "classifier-shapes"
    assert {p.name for p in folder.iterdir()} == {
        "classifier.safetensors", "results.json", "confusion.csv", "confusion.png",
    }  # fmt: skip
    with Image.open(folder / "confusion.png") as confusion:
        assert min(confusion.size) > 400
    with open(folder / "confusion.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true class", *shapes.KINDS, "accuracy"]
    assert sum(int(cell) for row in rows[1:] for cell in row[1:-1]) == 20
    report = json.loads((folder / "results.json").read_text())
    assert report["config"]["epochs"] == 3 and report["config"]["dataset"] == "shapes"
    assert len(report["history"]) == 3
    assert load_classifier(folder).classes == tuple(shapes.KINDS)
    assert here("evaluate", "--device", "cpu").status == 0, "the run is as usable as before"


def test_json_and_the_variants_side_by_side(here: Here) -> None:
    for options, ending in (
        ((), ""),
        (("--random-encoder",), "-random"),
        (("--fine-tune",), "-fine-tuned"),
        (("--random-encoder", "--fine-tune", "--pool", "2"), "-random-fine-tuned"),
    ):
        result = here(*CLASSIFY, *options, "--json")
        assert result.status == 0, result.err
        report = json.loads(result.out)
        assert report["out"] == str(RUN / f"classifier-shapes{ending}")
        # 34x34 maps: windows of at most 16x16 make three a side of two.
        assert report["features"] == 2 * (3 if "--pool" in options else 4) ** 2
        assert report["test"]["images"] == 20
        stages = [row["stage"] for row in report["history"]]
        tuned = "--fine-tune" in options
        assert stages.count("all layers") == 3 * tuned
        assert stages.count("linear layer") == (20 if tuned else 3)
        assert report["random_encoder"] == ("--random-encoder" in options)
    trained, random = (
        load_classifier(RUN / f"classifier-shapes{ending}").params["0.weight"]
        for ending in ("", "-random")
    )
    assert not np.array_equal(trained, random)


def test_the_same_again_to_the_bit_whatever_the_threads(here: Here) -> None:
    for out, threads in (("a", 1), ("b", 3)):
        words = ("--fine-tune", "--out", out, "--threads", threads)
        assert here(*CLASSIFY, *words).status == 0
    weights = [load_classifier(Path(out)).parameters.tobytes() for out in ("a", "b")]
    assert weights[0] == weights[1]


def test_a_folder_with_a_folder_per_class(here: Here) -> None:
    class_folders(Path("photos"))
    words = ("--dataset", "folder", "--data-dir", "photos", "--size", "12", "--lr", "0.05")
    result = here(*CLASSIFY, *words, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["test"]["classes"] == ["bright $", "dark"]
    assert report["test"]["accuracy"] == 1, "they differ in nothing else"
    assert report["out"] == str(RUN / "classifier-folder")


def test_a_database_and_a_deep_model(here: Here) -> None:
    class_folders(Path("photos"))
    converted = here("data", "convert", "photos", "photos.lmdb", "--size", "16", "--shuffle")
    assert converted.status == 0, converted.err
    words = ("--model", "deep-same", "--code-size", "5", "--dataset", "lmdb", "--device", "cpu")
    train = here("train", *words, "--data-dir", "photos.lmdb", "--epochs", "1")
    assert train.status == 0, train.err
    result = here(*CLASSIFY, "--lr", "0.05", "--json")  # the newest run
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["features"] == 5
    assert report["images"] == {"train": 32, "validation": 4, "test": 4}
    assert "the last 4 training images choose the epoch" in report["notes"][0]
    assert report["test"]["classes"] == ["0", "1"]


def test_a_model_that_ships_with_the_package(here: Here) -> None:
    result = here(*CLASSIFY, "--dataset", "shapes", "--runs-dir", "none")
    assert result.status == 0, result.err
    assert Path("classifier-shapes/confusion.png").is_file()


def test_the_data_is_one_of_other_channels(here: Here) -> None:
    """A model of gray images gets luma, and says so."""
    for i in range(30):
        picture(Path("gray", str(i % 2), f"{i}.png"), 9, 9, 3, seed=i)
    result = here(
        *CLASSIFY, "--dataset", "folder", "--data-dir", "gray", "--size", "9", "--checkpoint",
        Path(shapes.__file__).parent.parent / "pretrained" / "single-layer-gray.safetensors",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "it was turned to gray" in result.out


def test_ctrl_c_leaves_nothing_half_done(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(trained, folder)
    process = subprocess.Popen(
        command("classify", "--device", "cpu", "--dataset", "shapes", "--epochs", 100_000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=heed_ctrl_c,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 2/" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list((folder / RUN / "classifier-shapes").iterdir()) == []
