"""`cae-raw evaluate`: the figures of a run's best checkpoint on one split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cae_raw.backends import choose_backend
from cae_raw.commands.data import cache_near, load_data
from cae_raw.commands.options import check_threads
from cae_raw.errors import unknown_name
from cae_raw.training.config import TrainConfig
from cae_raw.training.loading import find_run, load_checkpoint
from cae_raw.training.session import check_same_data, measure

SPLITS = ("validation", "test")


def evaluate(
    run: Path | None,
    split: str,
    *,
    data_dir: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
) -> dict[str, Any]:
    """Measure the run's best checkpoint; returns run, epoch, split, images and the figures."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    check_threads(threads)
    backend = choose_backend(device)
    found = find_run(run, runs_dir)
    checkpoint = load_checkpoint(found.path)
    config = TrainConfig.from_json(checkpoint.config["train"])
    dataset = load_data(config, data_dir, sys.stderr, cache_near(runs_dir, found.path))
    check_same_data(checkpoint.config["data"], dataset, found.path)
    model = checkpoint.build_model()
    model.to(backend)
    images = dataset.test if split == "test" else dataset.validation
    figures = measure(model, images, threads)
    low, high = model.value_range
    return {
        "run": str(found.path),
        "epoch": checkpoint.state["best_epoch"],
        "split": split,
        "images": len(images),
        "peak": high - low,
        **figures.to_json(),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """What `evaluate` returned, for people."""
    figures = {name: "not finite" for name in ("half_mse", "mse", "psnr")}
    for name, form in (("half_mse", ".8f"), ("mse", ".8f"), ("psnr", ".2f")):
        if report[name] is not None:
            figures[name] = format(report[name], form)
    return [
        f"{report['run']}: best checkpoint, epoch {report['epoch']}",
        f"{report['split']}, {report['images']:,} images",
        f"  half_mse {figures['half_mse']}",
        f"  mse      {figures['mse']}",
        f"  psnr     {figures['psnr']} dB (peak {report['peak']:g})",
    ]
