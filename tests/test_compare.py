"""`cae-raw compare`: its figures are those of the runs, and runs are called by what differs."""

from __future__ import annotations

import csv
import json
import shutil
from math import log10
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from cli_runner import Here
from PIL import Image
from report_cases import CPU, FIRST, SECOND, SINGLE, here, read, rewrite, trained

from cae_raw.pictures.curves import COLOURS, curves_chart, run_colour
from cae_raw.pictures.view import View
from cae_raw.report import differences
from cae_raw.report.differences import differing, labels
from cae_raw.report.images import by_images, reconstructions_picture
from cae_raw.report.runs import find_runs
from cae_raw.report.table import duration
from cae_raw.training.run_dir import RunDir
from cae_raw.training.trainer import EpochRecord

__all__ = ["here", "trained"]  # fixtures


def test_figures_are_those_of_the_metrics(here: Here) -> None:
    result = here("compare", FIRST, SECOND, "--json", "--csv", "table.csv", *CPU)
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["differing"] == {"lr": [0.001, 0.01]} and report["notes"] == []
    with open("table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for path, row, line in zip((FIRST, SECOND), report["runs"], table, strict=True):
        with open(path / "metrics.csv", newline="") as file:
            metrics = [{k: float(v) for k, v in each.items()} for each in csv.DictReader(file)]
        best = min(metrics, key=lambda each: each["validation_half_mse"])
        test = dict(
            each.split(": ") for each in (path / "test_results.txt").read_text().splitlines()
        )
        assert row["run"] == str(path)
        assert row["best_validation_half_mse"] == best["validation_half_mse"]
        assert row["best_epoch"] == best["epoch"] and row["epochs"] == len(metrics)
        assert row["final_train_half_mse"] == metrics[-1]["train_half_mse"]
        assert row["final_validation_half_mse"] == metrics[-1]["validation_half_mse"]
        # the peak is the width of [-1, 1]
        wanted = 10 * log10(2**2 / (2 * best["validation_half_mse"]))
        assert row["best_validation_psnr"] == pytest.approx(wanted, rel=1e-12)
        assert row["test_half_mse"] == float(test["half_mse"])
        assert row["test_psnr"] == float(test["psnr"])
        assert row["images_per_second"] == median(m["images_per_second"] for m in metrics)
        assert row["seconds"] == pytest.approx(sum(m["seconds"] for m in metrics))
        assert row["parameters"] == 2 * 27 + 2 + 3 * 18 + 3
        for name in ("best_validation_half_mse", "test_psnr", "seconds", "parameters"):
            assert float(line[name]) == row[name]
        assert line["lr"] == f"{row['hyperparameters']['lr']:g}"
        assert f"{row['final_validation_half_mse']:.4g}" in result.err
    assert [row["label"] for row in report["runs"]] == ["lr 0.001", "lr 0.01"]


def test_pictures_are_written(here: Here) -> None:
    result = here("compare", SINGLE, *CPU)
    assert result.status == 0
    assert {path.name for path in Path("comparison").iterdir()} == {
        "curves.png",
        "reconstructions.png",
    }
    pixels = np.asarray(Image.open("comparison/curves.png"))
    for colour in COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(-1).any()
    assert here("compare", SINGLE, "--out", "a/b", *CPU).status == 0
    assert Path("a/b/curves.png").exists()


def test_the_picture_holds_what_each_run_makes_of_the_same_images(here: Here) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    views = [View(run.model, images) for run in read(SINGLE)]
    picture = np.asarray(reconstructions_picture(["a", "b"], views, "some"))
    for wanted in (images, views[0].outputs, views[1].outputs):
        for image in wanted:
            large = image.transpose(1, 2, 0).repeat(6, 0).repeat(6, 1)
            h, w, _ = large.shape
            corners = np.argwhere((picture[: 1 - h, : 1 - w] == large[0, 0]).all(-1))
            assert any((picture[y : y + h, x : x + w] == large).all() for y, x in corners)


def test_different_models_are_compared_by_psnr(here: Here) -> None:
    result = here("compare", "runs", "--json", *CPU)
    assert result.status == 0
    report = json.loads(result.out)
    assert {"model", "loss"} <= set(report["differing"])
    assert any("[-1, 1], [0, 1]" in note and "PSNR" in note for note in report["notes"])
    ranges = {tuple(row["value_range"]) for row in report["runs"]}
    assert ranges == {(-1.0, 1.0), (0.0, 1.0)}
    for row in report["runs"]:
        peak = row["value_range"][1] - row["value_range"][0]
        wanted = 10 * log10(peak**2 / (2 * row["final_validation_half_mse"]))
        assert row["final_validation_psnr"] == pytest.approx(wanted, rel=1e-12)
    assert [Path(each["path"]).name for each in report["pictures"]] == [
        "curves.png",
        "reconstructions.png",
    ]


def test_runs_of_different_images_have_no_picture_of_them(here: Here) -> None:
    from cae_raw.training import checkpoint

    saved = checkpoint.load(SECOND / "best.safetensors")
    saved.config["data"]["test"]["sha256"] = "0" * 64
    saved.config["data"]["validation"]["sha256"] = "0" * 64
    checkpoint.save(SECOND / "best.safetensors", saved)
    result = here("compare", SINGLE, *CPU)
    assert result.status == 0
    assert "reconstructions are left out: these runs do not take the same images" in result.out
    assert "these runs were validated on different images" in result.out
    assert [path.name for path in Path("comparison").iterdir()] == ["curves.png"]
    assert len(by_images(read(SINGLE), "test")) == 2 and len(by_images(read(SINGLE), "train")) == 1


def test_images_that_cannot_be_read_are_left_out(here: Here) -> None:
    for run in (FIRST, SECOND):
        rewrite(run, dataset="folder", data_dir="/nowhere", size=32)
    result = here("compare", SINGLE, *CPU)
    assert result.status == 0
    assert "reconstructions are left out: --data-dir /nowhere: No such file" in result.out
    result = here("compare", SINGLE, "--data-dir", "photos", *CPU)
    assert result.status == 2 and "--data-dir photos: No such file" in result.err


def test_runs_below_folders_are_found_once(here: Here) -> None:
    runs, notes = find_runs([SINGLE, FIRST, Path("runs")])
    assert [run.path.name for run in runs[:2]] == [FIRST.name, SECOND.name]
    assert len(runs) == 3 and notes == []
    (SECOND / "best.safetensors").unlink()
    runs, notes = find_runs([Path("runs")])
    assert len(runs) == 2
    assert notes == [f"{SECOND} is left out: it holds no best.safetensors"]


def test_a_run_that_is_not_done_has_no_test_figures(here: Here) -> None:
    (SECOND / "test_results.txt").unlink()
    text = (FIRST / "test_results.txt").read_text()
    (FIRST / "test_results.txt").write_text(text.replace("epoch: 1", "epoch: 7"))
    result = here("compare", SINGLE, "--json", *CPU)
    assert [row["test_psnr"] for row in json.loads(result.out)["runs"]] == [None, None]


def test_results_are_read_as_they_were_written(here: Here) -> None:
    found = RunDir(FIRST).read_results("test")
    assert (
        found is not None and found[1] == 1 and found[0].mse == pytest.approx(2 * found[0].half_mse)
    )
    assert RunDir(FIRST).read_results("train") is None
    for damage in (b"half_mse 1", b"half_mse: x", b"\xff\xfe", b"half_mse: 1\nmse: 1\npsnr: 1"):
        (FIRST / "test_results.txt").write_bytes(damage)
        result = here("compare", SINGLE, *CPU)
        assert result.status == 2 and "test_results.txt is damaged" in result.err


def test_runs_are_called_by_what_differs(here: Here) -> None:
    assert labels(read(FIRST)) == [FIRST.name]
    shutil.copytree(FIRST, "copy")
    assert labels(read(FIRST, Path("copy"))) == [FIRST.name, "copy"]
    again = Path("again", FIRST.name)
    shutil.copytree(FIRST, again)
    assert labels(read(FIRST, again)) == [f"{FIRST.name} ({FIRST})", f"{FIRST.name} ({again})"]
    rewrite(Path("copy"), seed=3, comment="words", l2_penalty=1e-9)
    runs = read(FIRST, Path("copy"))
    assert labels(runs) == ["l2_penalty 0, seed 0", "l2_penalty 1e-09, words, seed 3"]


def test_what_a_run_has_no_use_for_is_no_difference(here: Here) -> None:
    shutil.copytree(FIRST, "copy")
    rewrite(Path("copy"), optimizer="sgd", momentum=0.9, betas=[0.5, 0.5], lr_decay_factor=0.5)
    assert differing(read(FIRST, Path("copy"))) == {"optimizer": ["adam", "sgd"]}


def test_long_names_leave_out_what_follows_from_the_rest(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differences, "LONG", 10)
    deep, *single = labels(read(Path("runs")))
    assert deep == "deep, lr 0.001"
    assert single == ["single-layer, lr 0.001", "single-layer, lr 0.01"]


def test_chart_of_psnr_and_of_many_runs_with_odd_names() -> None:
    history = [
        EpochRecord(e, e, 1.0, 1.0, 0.5 / e, 0.0 if e == 2 else 0.4 / e, 0.1) for e in (1, 2)
    ]
    for count in (2, 8, 30):
        names = [f"run {i} $\\frac{{1 \u4e2d {'x' * 50}" for i in range(count)]
        ranges = {name: (0.0, 1.0) for name in names}
        chart = curves_chart(dict.fromkeys(names, history), (1600, 900), ranges)
        assert chart.size == (1600, 900)
    assert len({run_colour(i) for i in range(60)}) == 60


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 36610)] == [
        *("0:00", "1:00", "59:59", "1:00:00", "10:10:10")
    ]
