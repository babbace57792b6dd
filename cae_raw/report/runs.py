"""The runs that are compared: found below folders, and read whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from statistics import median
from typing import Any

from cae_raw.errors import InputError
from cae_raw.figures import Figures, psnr
from cae_raw.models import Autoencoder
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.config import TrainConfig
from cae_raw.training.loading import find_run, load_checkpoint
from cae_raw.training.run_dir import RunDir
from cae_raw.training.trainer import EpochRecord, TrainState


@dataclass(frozen=True)
class Trained:
    """A run that has a best checkpoint.

    history: of all its epochs, at least one. test: the figures of its best checkpoint, None where
    the training has not ended.
    """

    path: Path
    config: TrainConfig
    checkpoint: Checkpoint
    history: list[EpochRecord]
    test: Figures | None

    @cached_property
    def model(self) -> Autoencoder:
        """With the weights of the best checkpoint."""
        return self.checkpoint.build_model()

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.resolve().name

    @property
    def data(self) -> dict[str, Any]:
        """What tells its images from others, by split."""
        found: dict[str, Any] = self.checkpoint.config["data"]
        return found

    @property
    def value_range(self) -> tuple[float, float]:
        return self.model.value_range

    @property
    def best(self) -> EpochRecord:
        """The epoch that the best checkpoint is of."""
        number = self.checkpoint.state["best_epoch"]
        return next((record for record in self.history if record.epoch == number), self.history[-1])

    @property
    def final(self) -> EpochRecord:
        return self.history[-1]

    @property
    def images_per_second(self) -> float:
        """In training; the median over epochs, as some share the machine with other work."""
        return median(record.images_per_second for record in self.history)

    def psnr(self, half_mse: float) -> float:
        """In dB, the peak being the width of the range of values."""
        return psnr(2 * half_mse, self.value_range) if isfinite(half_mse) else nan

    def data_key(self, split: str) -> str:
        """The same for runs with the same images in a split."""
        return json.dumps([self.data["name"], self.data[split]], sort_keys=True)


def find_runs(paths: Iterable[Path]) -> tuple[list[RunDir], list[str]]:
    """The runs that are named or lie below what is named, each once, and notes on what is left out.

    Raises:
        InputError: for a path that is no run and holds none.
    """
    found: dict[Path, RunDir] = {}
    notes = []
    for path in paths:
        here = find_run(path, path)
        below = [here] if here.best.is_file() else _below(path)
        if not below:
            if here.config.is_file():
                raise InputError(
                    f"{path} holds no best.safetensors: train it for an epoch at least"
                )
            raise InputError(f"{path} is no run and holds none: name the folder of a run")
        if below != [here]:
            notes += _stopped_early(path)
        for run in below:
            found.setdefault(run.path.resolve(), run)
    return list(found.values()), notes


def _below(folder: Path) -> list[RunDir]:
    return [RunDir(best.parent) for best in sorted(folder.rglob("best.safetensors"))]


def _stopped_early(folder: Path) -> list[str]:
    """A note for each run below a folder that has no checkpoint yet."""
    return [
        f"{config.parent} is left out: it holds no best.safetensors"
        for config in sorted(folder.rglob("config.json"))
        if (config.parent / "metrics.csv").exists() or (config.parent / "last.safetensors").exists()
        if not RunDir(config.parent).best.is_file()
    ]


def read_runs(runs: Sequence[RunDir]) -> list[Trained]:
    """All about each of them.

    Raises:
        InputError: if one of their files is damaged.
    """
    return [_read(run) for run in runs]


def _read(run: RunDir) -> Trained:
    checkpoint = load_checkpoint(run.path)
    history = run.read_metrics() or TrainState.from_json(checkpoint.state).history
    if not history:
        raise InputError(f"{run.path} has no finished epoch: train it for an epoch at least")
    config = TrainConfig.from_json(checkpoint.config["train"])
    test = run.read_results("test")
    if test is not None and test[1] != checkpoint.state["best_epoch"]:
        test = None  # of an earlier best checkpoint: the run is being trained on
    return Trained(run.path, config, checkpoint, history, test[0] if test else None)
