"""`cae-raw evaluate`: the figures agree with what training wrote; which run it takes."""

from __future__ import annotations

import csv
import json
import os
from math import log10
from pathlib import Path

import pytest
from cli_runner import TRAIN, Here

from cae_raw.data import load_dataset
from cae_raw.data.scaling import to_floats
from cae_raw.training.loading import load

RUN = Path("runs/single-layer/shapes_adam_lr=0.001_b=16_f=2")
EVALUATE = ("evaluate", "--device", "cpu")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_figures_agree_with_the_files_and_the_model(here: Here, split: str) -> None:
    here(*TRAIN, "--epochs", "2")
    result = here(*EVALUATE, RUN, "--split", split, "--json")
    assert (result.status, result.err) == (0, "")
    figures = json.loads(result.out)
    assert set(figures) == {"run", "epoch", "split", "images", "peak", "half_mse", "mse", "psnr"}

    stated = dict(
        line.split(": ") for line in (RUN / f"{split}_results.txt").read_text().splitlines()
    )
    for name in ("half_mse", "mse", "psnr"):
        assert f"{figures[name]:.8g}" == stated[name]
    assert figures["epoch"] == int(stated["epoch"])
    if split == "validation":
        with open(RUN / "metrics.csv", newline="") as file:
            measured = [float(row["validation_half_mse"]) for row in csv.DictReader(file)]
        assert figures["half_mse"] == min(measured)
        assert figures["epoch"] == 1 + measured.index(min(measured))

    images = getattr(load_dataset("shapes"), split).images
    model = load(RUN)
    x = to_floats(images, model.value_range)
    mse = float(((model.forward(x) - x).astype("f8") ** 2).mean())
    assert figures["images"] == len(images)
    assert figures["mse"] == pytest.approx(mse, rel=1e-5)
    assert figures["half_mse"] == figures["mse"] / 2
    assert figures["psnr"] == pytest.approx(10 * log10(2**2 / mse), rel=1e-5)


def test_for_people(here: Here) -> None:
    here(*TRAIN)
    figures = json.loads(here(*EVALUATE, "--json").out)
    result = here(*EVALUATE)
    assert result.out.splitlines() == [
        f"{RUN}: best checkpoint, epoch 1",
        "test, 20 images",
        f"  half_mse {figures['half_mse']:.8f}",
        f"  mse      {figures['mse']:.8f}",
        f"  psnr     {figures['psnr']:.2f} dB (peak 2)",
    ]


def test_the_penalty_is_no_part_of_the_figures(here: Here) -> None:
    report = json.loads(here(*TRAIN, "--l2-penalty", "1", "--lr", "1e-9", "--json").out)
    plain = json.loads(here(*TRAIN, "--lr", "1e-9", "--json").out)
    assert report["test"]["half_mse"] == pytest.approx(plain["test"]["half_mse"], rel=1e-4)


def test_the_newest_run_by_default(here: Here) -> None:
    runs = []
    for age, seed in ((100, 1), (300, 2), (200, 3)):
        runs.append(Path(json.loads(here(*TRAIN, "--seed", seed, "--json").out)["run"]))
        os.utime(runs[-1] / "best.safetensors", (age, age))
    assert json.loads(here(*EVALUATE, "--json").out)["run"] == str(runs[1])
    assert json.loads(here(*EVALUATE, runs[2], "--json").out)["run"] == str(runs[2])


def test_another_data_set_is_refused(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    from cae_raw.data import shapes

    here(*TRAIN)
    monkeypatch.setattr(shapes, "COUNTS", {"train": 41, "validation": 8, "test": 20})
    result = here(*EVALUATE)
    assert result.status == 2
    assert result.err == (
        f"cae-raw: error: {RUN} was trained on other images than these of shapes: name the folder "
        "they lie in with --data-dir\n"
    )
    assert result.out == ""
