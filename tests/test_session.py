"""Stopped anywhere and resumed, a run ends with the bits of one that was never stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_cases import (
    Listener,
    checkpoint_contents,
    make_dataset,
    metrics_without_times,
    run_contents,
)

from cae_raw.data import Dataset
from cae_raw.errors import InputError
from cae_raw.training import checkpoint
from cae_raw.training import session as session_module
from cae_raw.training.config import TrainConfig
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import Outcome, RunSession, check_same_data, measure
from cae_raw.training.trainer import BatchDone, EpochDone

CONFIG = TrainConfig(
    filters=2, batch_size=10, lr=0.01, l2_penalty=1e-4, lr_decay_epochs=1, lr_decay_factor=0.8
)
EPOCHS = 3
EVENTS = 15  # four batches and an end in each of three epochs
Hear = Callable[[int, BatchDone | EpochDone], None]


def open_session(
    folder: Path,
    config: TrainConfig = CONFIG,
    dataset: Dataset | None = None,
    threads: int | None = 2,
) -> RunSession:
    folder.mkdir(exist_ok=True)
    session = RunSession(config, dataset or make_dataset(), RunDir(folder), threads=threads)
    session.trainer.engine.chunk = 4
    return session


def train(
    folder: Path,
    config: TrainConfig = CONFIG,
    *,
    hear: Hear = lambda *_: None,
    epochs: int = EPOCHS,
    save_every: float = 1e9,
    threads: int | None = 2,
) -> Outcome:
    """One process's work: open what is there, train on."""
    session = open_session(folder, config, threads=threads)
    listener = Listener(hear)
    try:
        return session.train(epochs, listener, save_every)
    finally:
        assert not listener.open


def stop_after(k: int, number: int = signal.SIGINT) -> Hear:
    def hear(position: int, _: object) -> None:
        if position == k:
            signal.raise_signal(number)

    return hear


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that is never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    outcome = train(folder, threads=1)
    assert outcome.signal is None and outcome.trained_epochs == EPOCHS
    return run_contents(folder)


def test_a_run_leaves_everything(tmp_path: Path) -> None:
    outcome = train(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.csv",
        "reconstructions.png",
        "test_results.txt",
        "validation_results.txt",
    ]
    rows = metrics_without_times(tmp_path / "metrics.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8"), ("3", "12")]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.01, 0.008, 0.0064])
    errors = [float(row["validation_half_mse"]) for row in rows]
    best = checkpoint.load(tmp_path / "best.safetensors")
    assert best.state["best"] == min(errors)
    assert best.state["best_epoch"] == 1 + int(np.argmin(errors)) == outcome.state.best_epoch
    assert outcome.validation is not None and outcome.test is not None
    # The figures are those of the best weights, measured anew.
    assert outcome.validation.half_mse == pytest.approx(min(errors), rel=1e-12)
    model, dataset = best.build_model(), make_dataset()
    assert measure(model, dataset.test) == outcome.test != outcome.validation
    text = (tmp_path / "test_results.txt").read_text()
    assert f"half_mse: {outcome.test.half_mse:.8g}\n" in text
    assert outcome.to_json()["finished"] is True


@pytest.mark.parametrize(
    ("seconds", "stopped", "pictures"), [(0, False, 4), (99, False, 1), (0, True, 2), (99, True, 0)]
)
def test_pictures_of_short_epochs(
    seconds: float, stopped: bool, pictures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs: one of each, unless the last picture is young; one at the end."""
    written: list[str] = []
    monkeypatch.setattr(session_module, "PICTURE_SECONDS", seconds)
    monkeypatch.setattr(session_module, "save_png", lambda _, path: written.append(path.name))
    train(tmp_path, hear=stop_after(10 if stopped else 99))  # at the end of the second epoch
    assert written == ["reconstructions.png"] * pictures


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("k", range(1, EVENTS + 1))
def test_stopped_anywhere(k: int, number: int, tmp_path: Path, whole: dict[str, Any]) -> None:
    before = signal.getsignal(number)
    outcome = train(tmp_path, hear=stop_after(k, number))
    assert signal.getsignal(number) is before
    assert outcome.signal == number
    assert outcome.validation is None and outcome.to_json()["finished"] is False
    assert (outcome.state.epoch, outcome.state.batch) == divmod(k, 5)
    assert outcome.trained_epochs == k // 5
    session = open_session(tmp_path)
    assert session.resumed and session.trainer.state == outcome.state
    outcome = train(tmp_path, threads=3)
    assert outcome.signal is None and outcome.trained_epochs == EPOCHS - k // 5
    assert run_contents(tmp_path) == whole


@pytest.mark.parametrize("seed", range(4))
def test_stopped_again_and_again(seed: int, tmp_path: Path, whole: dict[str, Any]) -> None:
    """Other threads and other save intervals each time."""
    rng = np.random.default_rng(seed)
    stops = 0
    while True:
        outcome = train(
            tmp_path,
            hear=stop_after(int(rng.integers(1, 5))),
            threads=int(rng.integers(1, 6)),
            save_every=float(rng.choice([0.0, 1e-3, 1e9])),
        )
        if outcome.signal is None:
            break
        stops += 1
    assert stops >= 3
    assert run_contents(tmp_path) == whole


def test_stopped_after_every_batch(tmp_path: Path, whole: dict[str, Any]) -> None:
    stops = 0
    while train(tmp_path, hear=stop_after(1)).signal is not None:
        stops += 1
    assert stops == EVENTS
    assert run_contents(tmp_path) == whole


class Crash(BaseException):
    """Ends a training at once, as a loss of power would, but for what is open."""


def crash_after(k: int) -> Hear:
    def hear(position: int, _: object) -> None:
        if position == k:
            raise Crash

    return hear


@pytest.mark.parametrize("save_every", [0.0, 1e9])
@pytest.mark.parametrize("k", range(1, EVENTS + 1))
def test_crashed_anywhere(k: int, save_every: float, tmp_path: Path, whole: dict[str, Any]) -> None:
    """Nothing is saved on the way out; the last checkpoint may be an epoch old, or none."""
    with pytest.raises(Crash):
        train(tmp_path, hear=crash_after(k), save_every=save_every)
    assert train(tmp_path).signal is None
    assert run_contents(tmp_path) == whole


def test_save_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[str] = []
    save = checkpoint.save

    def spy(path: Path, contents: checkpoint.Checkpoint) -> None:
        saves.append(path.name)
        save(path, contents)

    monkeypatch.setattr(checkpoint, "save", spy)
    train(tmp_path / "a", epochs=1, save_every=0)
    assert saves == ["last.safetensors"] * 4 + ["best.safetensors", "last.safetensors"]
    saves.clear()
    train(tmp_path / "b", epochs=1, save_every=1e9)
    assert saves == ["best.safetensors", "last.safetensors"]


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    """The first asks for an orderly end; the next is not swallowed."""

    def twice(position: int, _: object) -> None:
        if position == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, hear=twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_while_the_results_are_written_does_not_lose_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    write = RunDir.write_results

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        write(*arguments)

    handler = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("not handled"))
    try:
        monkeypatch.setattr(RunDir, "write_results", lambda *a: None)
        train(tmp_path, epochs=1)
        calls = iter([interrupted, write])
        monkeypatch.setattr(RunDir, "write_results", lambda *a: next(calls)(*a))
        outcome = train(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert outcome.signal is None and outcome.test is not None
    assert run_contents(tmp_path) == whole


def test_best_is_kept_when_later_epochs_are_worse(tmp_path: Path) -> None:
    config = replace(CONFIG, lr=0.3, lr_decay_epochs=0, lr_decay_factor=0.1)
    train(tmp_path / "whole", config)
    best = checkpoint.load(tmp_path / "whole" / "best.safetensors")
    last = checkpoint.load(tmp_path / "whole" / "last.safetensors")
    assert best.state["best_epoch"] == best.state["epoch"] == last.state["best_epoch"] == 1
    assert last.state["epoch"] == EPOCHS
    measured = measure(best.build_model(), make_dataset().validation).half_mse
    assert last.state["best"] == best.state["history"][0]["validation_half_mse"]
    assert last.state["best"] == pytest.approx(measured, rel=1e-12)
    assert "epoch: 1\n" in (tmp_path / "whole" / "validation_results.txt").read_text()
    for k in (5, 7, 11):  # whoever goes on remembers which was the best
        train(tmp_path / str(k), config, hear=stop_after(k))
        train(tmp_path / str(k), config)
        assert run_contents(tmp_path / str(k)) == run_contents(tmp_path / "whole")


# --- longer, again, otherwise -----------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 2])
def test_training_on_equals_a_longer_run(first: int, tmp_path: Path, whole: dict[str, Any]) -> None:
    assert train(tmp_path, epochs=first).state.epoch == first
    assert train(tmp_path).trained_epochs == EPOCHS - first
    assert run_contents(tmp_path) == whole


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    train(tmp_path)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for epochs in (EPOCHS, 1):
        outcome = train(tmp_path, epochs=epochs)
        assert outcome.trained_epochs == 0 and outcome.state.epoch == EPOCHS
        assert outcome.validation is not None
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


OTHER_SETTINGS: dict[str, Any] = {
    "dataset": "mnist",
    "optimizer": "sgd",
    "lr": 0.010000001,  # as 0.01 in the run's name
    "momentum": 0.5,
    "betas": (0.9, 0.99),
    "eps": 1e-7,
    "batch_size": 9,
    "l2_penalty": 1.0000001e-4,
    "l2_decoder": True,
    "lr_decay_epochs": 2,
    "lr_decay_factor": 0.81,
    "seed": 1,
    "filters": 3,
    "limit_train": 20,
    "size": 8,
    "comment": "x",
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_other_settings_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, hear=stop_after(2))
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="was trained with other hyper-parameters: give") as caught:
        open_session(tmp_path, replace(CONFIG, **{name: OTHER_SETTINGS[name]}))
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def changed(dataset: Dataset, split: str) -> Dataset:
    """One bit of one pixel is another."""
    part = getattr(dataset, split)
    images = part.images.copy()
    images[-1, -1, -1, -1] ^= 1
    return replace(dataset, **{split: replace(part, images=images)})


@pytest.mark.parametrize(
    "other",
    [
        changed(make_dataset(), "train"),
        changed(make_dataset(), "validation"),
        make_dataset(train=36),
        make_dataset(validation=12),
        make_dataset(test=8),
        make_dataset(shape=(1, 5, 6)),
        replace(make_dataset(), name="other"),
    ],
)
def test_other_images_are_refused(other: Dataset, tmp_path: Path) -> None:
    train(tmp_path, hear=stop_after(2))
    with pytest.raises(InputError, match="was trained with other images: give"):
        open_session(tmp_path, dataset=other)
    data = checkpoint.load(tmp_path / "last.safetensors").config["data"]
    check_same_data(data, make_dataset(), tmp_path)
    with pytest.raises(InputError, match="was trained on other images than these"):
        check_same_data(data, other, tmp_path)


def test_the_same_images_elsewhere_are_fine(tmp_path: Path, whole: dict[str, Any]) -> None:
    train(tmp_path, replace(CONFIG, data_dir="before"), hear=stop_after(7))
    train(tmp_path, replace(CONFIG, data_dir="/now/here"))
    assert run_contents(tmp_path) == whole


def test_damage_is_named_and_best_stays(tmp_path: Path) -> None:
    train(tmp_path, hear=stop_after(7))
    last, best = tmp_path / "last.safetensors", tmp_path / "best.safetensors"
    whole, kept = last.read_bytes(), best.read_bytes()
    for damaged in (whole[:-1], b"", whole[:-9] + bytes([whole[-9] ^ 16]) + whole[-8:]):
        last.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.safetensors is damaged .*--restart") as caught:
            open_session(tmp_path)
        assert "\n" not in str(caught.value)
        assert last.read_bytes() == damaged and best.read_bytes() == kept
    checkpoint.load(best).build_model()
    last.write_bytes(whole)
    assert open_session(tmp_path).resumed


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".0123.cae-raw.tmp").write_bytes(b"half a checkpoint")
    train(tmp_path, epochs=1)
    assert not list(tmp_path.glob(".*"))


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path, whole: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "metrics.csv").write_text("epoch\n7\n")
    assert not open_session(tmp_path).resumed
    train(tmp_path, hear=stop_after(2))
    assert metrics_without_times(tmp_path / "metrics.csv") == []
    train(tmp_path)
    assert run_contents(tmp_path) == whole


def test_nothing_to_measure() -> None:
    model = CONFIG.make_model((1, 6, 5))
    with pytest.raises(InputError, match="the split is empty"):
        measure(model, make_dataset(test=0).test)


def test_divergence_leaves_the_last_good_epoch(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    saved = checkpoint_contents(tmp_path / "last.safetensors")
    session = open_session(tmp_path)
    session.trainer.model.parameters[0] = np.nan
    with pytest.raises(InputError, match="training diverged: half_mse is nan in epoch 2"):
        session.train(EPOCHS, Listener(), 1e9)
    assert checkpoint_contents(tmp_path / "last.safetensors") == saved
