"""When checkpoints reach the disk: at most once in a while, in order, and all at the end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_cases import Listener, make_dataset, metrics_without_times, run_contents

from cae_raw.errors import InputError
from cae_raw.training import checkpoint, saves
from cae_raw.training.config import TrainConfig
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession
from cae_raw.training.trainer import BatchDone, EpochDone

EPOCHS = 4
EVENTS = 3 * EPOCHS  # two batches and an end in each
CONFIG = TrainConfig(filters=1, batch_size=20, lr=0.01)


class Failing(Listener):
    """A recorder that fails at one of the events that it hears, and then whenever it flushes."""

    failed = False

    def __init__(self, at: int) -> None:
        super().__init__(self.fail)
        self.at = at

    def fail(self, position: int, _: object) -> None:
        if position == self.at:
            self.failed = True
            raise InputError("broken")

    def flush(self) -> None:
        if self.failed:
            raise InputError("still broken")


def train(folder: Path, reporter: Listener | None = None, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    session = RunSession(CONFIG, make_dataset(), RunDir(folder), threads=1)
    session.train(EPOCHS, reporter or Listener(), options.pop("save_every", 1e9), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training leaves whose epochs are all saved."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saves, "SAVE_SECONDS", 0)
        train(folder)
    return run_contents(folder)


def written_by(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tick: float, save_every: float = 1e9
) -> list[str]:
    """Letters in the order of a training by a clock that goes on by `tick` whenever it is read.

    b, m, l: best, metrics and last are written; a dot ends a batch, a bar an epoch.
    """
    ticks, letters = itertools.count(0.0, tick), list[str]()
    monkeypatch.setattr(saves, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    save, metrics = checkpoint.save, RunDir.write_metrics

    def noted_save(path: Path, saved: checkpoint.Checkpoint) -> None:
        letters.append(path.stem[0])
        save(path, saved)

    def noted_metrics(run: RunDir, history: list) -> None:
        letters.append("m")
        metrics(run, history)

    monkeypatch.setattr(checkpoint, "save", noted_save)
    monkeypatch.setattr(RunDir, "write_metrics", noted_metrics)

    def hear(_: int, done: BatchDone | EpochDone) -> None:
        letters.append("|" if isinstance(done, EpochDone) else ".")

    train(folder, Listener(hear), save_every=save_every)
    return "".join(letters).split("|")


def test_long_epochs_are_written_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    assert written_by(tmp_path, monkeypatch, 9) == ["m..bml", *["..bml"] * 3, ""]
    assert run_contents(tmp_path) == whole


def test_short_epochs_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    assert written_by(tmp_path, monkeypatch, 1e-6) == ["m..", *[".."] * 3, "bml"]
    assert run_contents(tmp_path) == whole


def test_an_epoch_that_ends_just_after_a_save_does_not_wait_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    """It is written during the next one, however long that takes."""
    epochs = written_by(tmp_path, monkeypatch, 0.6, save_every=1.1)
    assert epochs[0] == "m..l" and epochs[1].startswith(".bml"), epochs
    assert run_contents(tmp_path) == whole


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("at", range(1, EVENTS + 1))
def test_what_an_exception_leaves_goes_on_exactly(
    at: int,
    recording: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, Any],
) -> None:
    """Nothing was written before it; after it all is there up to the last epoch that was kept.

    A recorder hears of an epoch before that is kept, a reporter after it.
    """
    monkeypatch.setattr(saves, "SAVE_SECONDS", 1e9)
    failing = Failing(at)
    with pytest.raises(InputError, match=r"^broken"):
        if recording:
            train(tmp_path, recorder=failing)
        else:
            train(tmp_path, failing)
    run, epochs = RunDir(tmp_path), (at - 1 if recording else at) // 3
    assert run.last.exists() == run.best.exists() == (epochs > 0)
    assert len(metrics_without_times(run.metrics)) == epochs
    if epochs:
        assert checkpoint.load(run.last).state["epoch"] == epochs
    train(tmp_path)
    assert run_contents(tmp_path) == whole


def test_the_first_error_is_the_one_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(saves, "SAVE_SECONDS", 1e9)
    monkeypatch.setattr(checkpoint, "save", no_memory)
    with pytest.raises(InputError, match=r"^broken"):
        train(tmp_path, Failing(5))


def test_a_best_that_is_ahead_is_gone_on_from(tmp_path: Path, whole: dict[str, Any]) -> None:
    """As a kill between the two leaves them."""
    train(tmp_path)
    run = RunDir(tmp_path)
    best = checkpoint.load(run.best)
    assert best.state["epoch"] == EPOCHS
    state = {**best.state, "epoch": 1, "step": 2, "history": best.state["history"][:1]}
    checkpoint.save(run.last, replace(best, state=state))
    found = saves.to_resume_from(run)
    assert found is not None and found.state == best.state
    train(tmp_path)
    assert run_contents(tmp_path) == whole
    run.best.write_bytes(b"damaged")
    found = saves.to_resume_from(run)
    assert found is not None and found.path == run.last
    run.last.unlink()
    assert saves.to_resume_from(run) is None


def test_what_a_half_deleted_run_left_is_not_gone_on_from(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    train(tmp_path)
    RunDir(tmp_path).last.unlink()
    with pytest.raises(InputError, match=r"^broken"):
        train(tmp_path, Failing(1), save_every=0)
    assert not RunDir(tmp_path).best.exists()
    train(tmp_path)
    assert run_contents(tmp_path) == whole
