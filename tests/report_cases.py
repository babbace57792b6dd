"""Runs to compare, trained in moments, and ways to change what they say of themselves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_runner import TRAIN, Here, isolate

from cae_raw.app import main
from cae_raw.report.runs import Trained, find_runs, read_runs
from cae_raw.training import checkpoint

SINGLE = Path("runs/single-layer")
FIRST = SINGLE / "shapes_adam_lr=0.001_b=16_f=2"
SECOND = SINGLE / "shapes_adam_lr=0.01_b=16_f=2"
CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the single-layer model, of 1 and of 3 epochs, and one of a deep model."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, folder)
        for words in (
            TRAIN,
            (*TRAIN, "--lr", "0.01", "--epochs", "3"),
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


def read(*paths: Path) -> list[Trained]:
    return read_runs(find_runs(paths)[0])


def rewrite(run: Path, **changes: Any) -> None:
    """Make the run's checkpoint say that it was trained otherwise."""
    saved = checkpoint.load(run / "best.safetensors")
    saved.config["train"] |= changes
    checkpoint.save(run / "best.safetensors", saved)
