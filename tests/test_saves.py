"""When checkpoints reach the disk: at most once in a while, in order, and all at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_cases import Listener, make_dataset, metrics_without_times, run_contents

from cae_raw.errors import InputError
from cae_raw.training import checkpoint, saves
from cae_raw.training.config import TrainConfig
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession
from cae_raw.training.trainer import BatchDone, EpochDone

EPOCHS = 4
CONFIG = TrainConfig(filters=1, batch_size=20, lr=0.01)


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[list[str]]:
    """The files that were written in each epoch of a training, and after the last."""
    monkeypatch.setattr(saves, "SAVE_SECONDS", seconds)
    written: list[list[str]] = [[]]
    save, metrics = checkpoint.save, RunDir.write_metrics

    def noted_save(path: Path, saved: checkpoint.Checkpoint) -> None:
        written[-1].append(path.stem)
        save(path, saved)

    def noted_metrics(run: RunDir, history: list) -> None:
        written[-1].append("metrics")
        metrics(run, history)

    monkeypatch.setattr(checkpoint, "save", noted_save)
    monkeypatch.setattr(RunDir, "write_metrics", noted_metrics)

    def hear(_: int, done: BatchDone | EpochDone) -> None:
        if isinstance(done, EpochDone):
            written.append([])

    folder.mkdir()
    run = RunDir(folder)
    RunSession(CONFIG, make_dataset(), run, threads=1).train(EPOCHS, Listener(hear), 1e9)
    return written


def test_short_epochs_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = train(tmp_path / "each", monkeypatch, 0)
    assert all(files[-2:] == ["metrics", "last"] for files in each[:EPOCHS])
    assert each[0] == ["metrics", "best", "metrics", "last"] and not each[EPOCHS]
    monkeypatch.undo()
    once = train(tmp_path / "once", monkeypatch, 1e9)
    assert once == [["metrics"], *[[]] * (EPOCHS - 1), ["best", "metrics", "last"]]
    assert run_contents(tmp_path / "once") == run_contents(tmp_path / "each")


@pytest.mark.parametrize("at", range(1, 12))
def test_what_an_exception_leaves_goes_on_exactly(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was written before it, but everything up to the last epoch is there after it."""
    whole = tmp_path / "whole"
    train(whole, monkeypatch, 1e9)
    monkeypatch.setattr(saves, "SAVE_SECONDS", 1e9)

    def fail(position: int, _: object) -> None:
        if position == at:
            raise InputError("broken")

    folder = tmp_path / "broken"
    folder.mkdir()
    run = RunDir(folder)
    with pytest.raises(InputError, match="broken"):
        RunSession(CONFIG, make_dataset(), run, threads=1).train(EPOCHS, Listener(fail), 1e9)
    epochs = at // 3  # two batches and an end in each; the end is saved before it is heard of
    assert run.last.exists() == run.best.exists() == (epochs > 0)
    assert len(metrics_without_times(run.metrics)) == epochs
    if epochs:
        assert checkpoint.load(run.last).state["epoch"] == epochs
    RunSession(CONFIG, make_dataset(), run, threads=1).train(EPOCHS, Listener(lambda *_: None), 1e9)
    assert run_contents(folder) == run_contents(whole)
