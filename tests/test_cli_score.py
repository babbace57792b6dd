"""`cae-raw score`: rankings of files and data sets, thresholds, AUROC, and what is written."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runner import TRAIN, Here, isolate, picture
from PIL import Image

from cae_raw.app import main
from cae_raw.data.image_file import load_image
from cae_raw.reconstruct import reconstruct_image
from cae_raw.training.loading import load

RUN = Path("runs/single-layer/shapes_adam_lr=0.001_b=16_f=2")
SCORE = ("score", "--device", "cpu")


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


def plain(path: Path, level: int, height: int = 9, width: int = 14) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (level, level, level)).save(path)
    return path


def table(name: str) -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_any_size(here: Here) -> None:
    names = ["noise.png", "plain.png", "gray.png"]
    picture(Path("noise.png"), 12, 10, 3)
    plain(Path("plain.png"), 128)
    picture(Path("gray.png"), 5, 7)
    result = here(*SCORE, *names, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    model = load(RUN)
    expected = {
        name: reconstruct_image(model, load_image(Path(name), 3)).figures.mse for name in names
    }
    assert report["model"] == str(RUN) and report["images"] == 3
    found = {row["name"]: row["mse"] for row in report["scores"]}
    assert found == pytest.approx(expected, rel=1e-5)
    ranked = sorted(expected, key=lambda name: -expected[name])
    assert [row["name"] for row in report["scores"]] == ranked
    assert report["threshold"] is None and report["auroc"] is None
    assert report["scores"][0]["flagged"] is None
    assert report["notes"] == ["1 images: a gray image for a model of RGB images: its channel was "
                               "repeated"]  # fmt: skip
    assert {p.name for p in Path("scores").iterdir()} == {
        "scores.csv", "ranking.png", "highest_0001.png", "highest_0002.png", "highest_0003.png",
    }  # fmt: skip
    rows = table("scores/scores.csv")
    assert [row["name"] for row in rows] == ranked
    assert [float(row["mse"]) for row in rows] == pytest.approx([expected[n] for n in ranked], 1e-5)


def test_a_threshold_from_clean_files(here: Here) -> None:
    for i in range(20):
        plain(Path("clean", f"{i}.png"), 120 + i)
    plain(Path("photos/good.png"), 130)
    picture(Path("photos/noise.png"), 9, 14, 3)
    result = here(*SCORE, "photos", "--clean", "clean", "--quantile", "0.95", "--out", "found")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[1].endswith("photos/noise.png, flagged")
    assert lines[2].endswith("photos/good.png")
    assert lines[3].startswith("threshold ")
    assert lines[3].endswith("quantile 0.95 of 20 clean images; 1 of 2 are above it")
    flags = [row["flagged"] for row in table("found/scores.csv")]
    assert flags == ["1", "0"]


def test_a_data_set_with_odd_classes(here: Here) -> None:
    words = ("--dataset", "shapes", "--odd", "noise,checks", "--clean-split", "validation")
    result = here(*SCORE, *words, "--top", "3", "--csv", "table.csv", "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["images"] == 20 and report["clean_images"] == 8
    assert sorted(report["odd"]) == ["checks", "noise"]
    rows = table("table.csv")
    pairs = [
        (float(a["mse"]), float(b["mse"]))
        for a in rows if a["odd"] == "1" for b in rows if b["odd"] == "0"
    ]  # fmt: skip
    share = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert report["auroc"] == pytest.approx(share)
    assert report["odd_images"] == sum(row["odd"] == "1" for row in rows) > 0
    assert report["odd_flagged"] == sum(r["odd"] == "1" and r["flagged"] == "1" for r in rows)
    assert not Path("scores/scores.csv").exists()
    assert len(list(Path("scores").glob("highest_*.png"))) == 3
    for name in ("roc.png", "ranking.png"):
        with Image.open(Path("scores", name)) as shown:
            assert min(shown.size) > 300


def test_classes_of_a_folder(here: Here) -> None:
    for i in range(4):
        picture(Path("parts/broken", f"{i}.png"), 9, 9, 3, seed=i)
        plain(Path("parts/whole", f"{i}.png"), 100 + i)
    result = here(*SCORE, "parts", "--odd", "broken", "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["auroc"] == 1


def test_a_deep_model_gets_images_of_its_size(here: Here) -> None:
    for i in range(12):
        picture(Path("photos", f"{i}.png"), 16, 16, 3, seed=i)
    words = ("--model", "deep-same", "--code-size", "5", "--dataset", "folder", "--device", "cpu")
    train = here("train", *words, "--data-dir", "photos", "--size", "16", "--epochs", "1")
    assert train.status == 0, train.err
    picture(Path("wide.png"), 9, 26, 3)
    result = here(*SCORE, "photos", "wide.png", "--top", "0", "--json")
    report = json.loads(result.out)
    assert report["images"] == 13 and report["files"] == ["scores/scores.csv"]
    assert ["resized from 26x9 to 16x16" in note for note in report["notes"]] == [True]
    split = here(
        *SCORE, "--dataset", "folder", "--data-dir", "photos", "--split", "train", "--json"
    )
    assert split.status == 0, split.err
    scores = {row["name"]: row["mse"] for row in report["scores"]}
    for row in json.loads(split.out)["scores"]:
        assert row["mse"] == pytest.approx(scores[f"photos/{row['name']}"], rel=1e-5)


def test_a_broken_file_is_named_and_left_out(here: Here) -> None:
    picture(Path("good.png"), 9, 9, 3)
    Path("bad.png").write_text("no")
    result = here(*SCORE, "good.png", "bad.png")
    assert result.status == 1
    assert "bad.png is not an image" in result.err
    assert "1 of 2 files could not be used" in result.err
    assert Path("scores/highest_0001.png").is_file()


def test_results_do_not_depend_on_threads(here: Here) -> None:
    tables = set()
    for threads in (1, 3):
        assert here(*SCORE, "--dataset", "shapes", "--threads", threads).status == 0
        tables.add(Path("scores/scores.csv").read_text())
    assert len(tables) == 1


def test_inputs_are_not_written_among(here: Here) -> None:
    picture(Path("photos/ranking.png"), 9, 9, 3)
    before = Path("photos/ranking.png").read_bytes()
    for words in (
        ("photos", "--out", "photos"),
        ("photos", "--out", "photos/deeper"),
        ("photos/ranking.png", "--out", "photos"),
        ("photos/ranking.png", "--csv", "photos/ranking.png"),
    ):
        result = here(*SCORE, *words)
        assert result.status == 2 and "give another --out" in result.err
    assert Path("photos/ranking.png").read_bytes() == before
    assert sorted(p.name for p in Path("photos").iterdir()) == ["ranking.png"]
