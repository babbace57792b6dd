"""Event files of a training: read back by TensorBoard's own reader, and the same after a kill."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Here
from PIL import Image
from training_cases import Listener, events_of, make_dataset, metrics_without_times

from cae_raw.backends import Backend
from cae_raw.errors import InputError
from cae_raw.pictures.filters import _filters
from cae_raw.pictures.view import View
from cae_raw.training import checkpoint, event_file, events
from cae_raw.training.config import TrainConfig
from cae_raw.training.event_file import PATTERN, EventFile, cut_back, delete_events
from cae_raw.training.events import EventRecorder, histogram
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession
from cae_raw.training.trainer import BatchDone, EpochDone

CONFIG = TrainConfig(filters=2, batch_size=10, l2_penalty=0.01, lr_decay_epochs=2)
PARAMETERS = ["0.weight", "0.bias", "2.weight", "2.bias"]


def session(path: Path, config: TrainConfig = CONFIG, **options: Any) -> RunSession:
    path.mkdir(exist_ok=True)
    return RunSession(config, make_dataset(), RunDir(path), threads=1, **options)


def train(
    path: Path,
    epochs: int = 2,
    images_every: int = 2,
    listener: Listener | None = None,
    **options: Any,
) -> RunSession:
    trained = session(path, **options)
    recorder = EventRecorder(trained.run, images_every)
    trained.train(epochs, listener or Listener(), 0, recorder)
    return trained


def reader(folder: Path) -> Any:
    """What TensorBoard itself finds in a folder's event files."""
    module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard is not installed: pip install cae-raw[test]",
    )
    everything = dict.fromkeys(("scalars", "images", "histograms"), 0)
    found = module.EventAccumulator(str(folder), size_guidance=everything)
    found.Reload()
    return found


def series(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


# --- what is written ------------------------------------------------------------------------


def test_scalars_are_those_of_the_training(tmp_path: Path) -> None:
    norms: list[float] = []
    trained = session(tmp_path / "run")
    trainer = trained.trainer

    def remember(_: int, done: BatchDone | EpochDone) -> None:
        if isinstance(done, BatchDone) and trainer.state.batch == 4:
            norms.append(float(np.linalg.norm(trainer.engine.gradients)))

    trained.train(2, Listener(remember), 60, EventRecorder(trained.run, 0))
    rows = metrics_without_times(tmp_path / "run" / "metrics.csv")
    train, validation = (reader(tmp_path / "run" / part) for part in ("train", "validation"))
    steps = [4, 8]
    for found, column in ((train, "train_half_mse"), (validation, "validation_half_mse")):
        expected = [float(row[column]) for row in rows]
        got = series(found, "half_mse")
        assert [step for step, _ in got] == steps
        np.testing.assert_allclose([value for _, value in got], expected, rtol=1e-6)
        penalties = [value for _, value in series(train, "penalty")]
        losses = [value for _, value in series(found, "loss")]
        np.testing.assert_allclose(losses, np.add(expected, penalties), rtol=1e-5)
    weights = trainer.model.params["0.weight"]
    assert penalties[-1] == pytest.approx(0.01 * float(np.sum(weights**2)), rel=1e-5)
    assert series(train, "lr") == [(4, pytest.approx(1e-3)), (8, pytest.approx(1e-3))]
    assert [step for step, _ in series(train, "images_per_second")] == steps
    np.testing.assert_allclose([v for _, v in series(train, "gradient_norm/all")], norms, rtol=1e-5)
    norm = float(np.linalg.norm(trainer.model.parameters))
    assert series(train, "parameter_norm/all")[-1] == (8, pytest.approx(norm, rel=1e-5))
    for kind in ("gradient_norm", "parameter_norm"):
        parts = [series(train, f"{kind}/{name}")[-1][1] for name in PARAMETERS]
        whole = series(train, f"{kind}/all")[-1][1]
        assert np.linalg.norm(parts) == pytest.approx(whole, rel=1e-5)
    assert [step for step, _ in series(train, "batch/half_mse")] == list(range(1, 9))
    assert set(validation.Tags()["scalars"]) == {"half_mse", "loss"}


def test_the_loss_is_the_one_that_is_trained_on(tmp_path: Path) -> None:
    train(tmp_path / "run", 1, 0, config=TrainConfig(filters=1, batch_size=37, loss="mse"))
    found = reader(tmp_path / "run" / "train")
    ((_, half_mse),) = series(found, "half_mse")
    assert series(found, "loss") == [(1, pytest.approx(2 * half_mse))]


def test_histograms_count_the_weights(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", 2, 0)
    found = reader(tmp_path / "run" / "train")
    for name in PARAMETERS:
        event = found.Histograms(f"parameters/{name}")[-1]
        values = trained.trainer.model.params[name].astype(np.float64)
        got = event.histogram_value
        assert (event.step, got.num) == (8, values.size)
        assert sum(got.bucket) == values.size
        np.testing.assert_allclose([got.min, got.max], [values.min(), values.max()])
        assert got.sum_squares == pytest.approx(float(np.sum(values**2)))


def test_histograms_of_many_few_and_no_finite_values() -> None:
    many = histogram(np.arange(3 * events.LARGEST, dtype=np.float32))
    assert many.num == events.LARGEST and many.min == 0 and many.max == 3 * events.LARGEST - 3
    assert sum(many.bucket) == many.num and len(many.bucket) == len(many.bucket_limit)
    odd = histogram(np.array([np.nan, 2.0, np.inf, 4.0], np.float32))
    assert (odd.num, odd.sum, odd.sum_squares) == (2, 6, 20)
    assert histogram(np.array([np.nan])).num == histogram(np.empty(0)).num == 0


def test_pictures_are_those_of_the_model(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", 5, 2)
    weights, images = (reader(tmp_path / "run" / part) for part in ("train", "validation"))
    assert set(weights.Tags()["images"]) == {"encoder_filters", "decoder_filters"}
    shown = {"reconstructions", "encoder_maps", "output", "errors"}
    assert set(images.Tags()["images"]) == shown
    for found in (weights, images):
        for tag in found.Tags()["images"]:
            steps = [event.step for event in found.Images(tag)]
            assert steps == [4, 8, 16, 20], "the first, every second, the last epoch"
    event = weights.Images("encoder_filters")[-1]
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert picture.size == (event.width, event.height)
    view = View(trained.trainer.model, None, name="run", epoch=5)
    (expected,) = _filters(view, "encoder")
    np.testing.assert_array_equal(np.asarray(picture), expected.array())


def test_no_pictures(tmp_path: Path) -> None:
    train(tmp_path / "run", 2, 0)
    assert not any(reader(tmp_path / "run" / p).Tags()["images"] for p in ("train", "validation"))


def test_pictures_by_default(tmp_path: Path) -> None:
    """Every ten epochs, as long as they take a small share of the time."""
    recorder = EventRecorder(RunDir(tmp_path))
    recorder.epochs = 34
    recorder.seconds = 100.0
    due = [epoch for epoch in range(1, 35) if recorder._pictures_due(epoch)]
    assert due == [1, 10, 20, 30, 34]
    recorder.of_pictures = 2.1
    assert [epoch for epoch in range(1, 35) if recorder._pictures_due(epoch)] == [1, 34]
    asked = EventRecorder(RunDir(tmp_path), 10)
    asked.epochs, asked.of_pictures = 34, 99.0
    assert [epoch for epoch in range(1, 35) if asked._pictures_due(epoch)] == due


def test_a_gpu_has_the_same_events(tmp_path: Path, backend: Backend) -> None:
    """Norms and pictures of arrays that lie on another device."""
    train(tmp_path / "cpu", 1, 0)
    train(tmp_path / "device", 1, 0, backend=backend)
    cpu, device = (dict_of_scalars(tmp_path / name) for name in ("cpu", "device"))
    assert cpu.keys() == device.keys()
    for key, value in cpu.items():
        assert device[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key


def dict_of_scalars(folder: Path) -> dict[tuple[str, int, str], float]:
    found = events_of(folder)
    return {(part, step, tag): v for part, step, tag, v in found if isinstance(v, float)}


# --- resuming -------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of a SIGKILL."""


def stop_after(position: int) -> Listener:
    def hear(at: int, _: BatchDone | EpochDone) -> None:
        if at == position:
            raise Killed

    return Listener(hear)


@pytest.mark.parametrize("position", range(1, 11))
def test_resumed_events_are_those_of_one_go(tmp_path: Path, position: int) -> None:
    """Stopped after every batch and every epoch, with checkpoints that are older than events."""
    every = 1 if position in (5, 9) else 0  # pictures, too
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    train(tmp_path / "a" / "run", 2, every)
    folder = tmp_path / "b" / "run"
    trained = session(folder)
    with pytest.raises(Killed):
        trained.train(2, stop_after(position), 0, EventRecorder(trained.run, every))
    if position >= 3:  # the newest checkpoint is gone, its events are not
        older = session(tmp_path / "older")
        with pytest.raises(Killed):
            older.train(2, stop_after(position - 1), 0)
        (folder / "last.safetensors").write_bytes((older.run.last).read_bytes())
    train(folder, 2, every)
    assert events_of(folder) == events_of(tmp_path / "a" / "run")
    for part in ("train", "validation"):
        found = reader(folder / part)
        for tag in found.Tags()["scalars"]:
            steps = [step for step, _ in series(found, tag)]
            assert steps == sorted(set(steps))


def test_an_open_tensorboard_drops_what_it_has_read(tmp_path: Path) -> None:
    """A reader that is further than the checkpoint sees each step once, too."""
    folder = tmp_path / "run"
    trained = session(folder)
    with pytest.raises(Killed):
        trained.train(2, stop_after(7), 0, EventRecorder(trained.run, 0))
    found = reader(folder / "train")
    assert [step for step, _ in series(found, "batch/half_mse")] == [1, 2, 3, 4, 5, 6]
    saved = checkpoint.load(folder / "last.safetensors")
    assert saved.state["step"] == 5, "killed before the sixth was saved"
    train(folder, 2, 0)
    found.Reload()
    assert [step for step, _ in series(found, "batch/half_mse")] == list(range(1, 9))


def test_a_finished_run_gets_no_new_file(tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = contents(tmp_path / "run")
    train(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    train(tmp_path / "run", 3)
    assert len(contents(tmp_path / "run")) == 4


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("events*"))}


# --- the files ------------------------------------------------------------------------------


def write(folder: Path, steps: range) -> Path:
    file = EventFile(folder)
    for step in steps:
        file.add(step, tag="t", simple_value=step / 2)
    file.close()
    assert file.path is not None
    return file.path


def steps_in(folder: Path) -> list[int]:
    return [step for step, _ in series(reader(folder), "t")]


def test_cutting_back(tmp_path: Path) -> None:
    path = write(tmp_path, range(6))
    size = path.stat().st_size
    cut_back(tmp_path, lambda event: True)
    assert path.stat().st_size == size
    cut_back(tmp_path, lambda event: event.step <= 3)
    assert steps_in(tmp_path) == [0, 1, 2, 3] and list(tmp_path.iterdir()) == [path]
    cut_back(tmp_path, lambda event: False)
    assert list(tmp_path.iterdir()) == []
    cut_back(tmp_path / "missing", lambda event: True)


@pytest.mark.parametrize("lost", [1, 4, 5, 20, 28])
def test_half_a_record_goes(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path, range(6))
    path.write_bytes(path.read_bytes()[:-lost])
    cut_back(tmp_path, lambda event: True)
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]
    assert sum(map(len, event_file._records(path.read_bytes()))) == path.stat().st_size


def test_garbage_at_the_end_goes(tmp_path: Path) -> None:
    path = write(tmp_path, range(3))
    whole = path.read_bytes()
    for garbage in (b"\0" * 40, b"\xff" * 7, bytes(range(200))):
        path.write_bytes(whole + garbage)
        cut_back(tmp_path, lambda event: True)
        assert path.read_bytes() == whole


def test_deleting_events_leaves_other_files(tmp_path: Path) -> None:
    write(tmp_path / "train", range(3))
    (tmp_path / "train" / "notes.txt").write_text("mine")
    write(tmp_path / "validation", range(3))
    for name in ("train", "validation", "missing"):
        delete_events(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["train", "notes.txt"]


class Full(io.BytesIO):
    """A file on a disk without room."""

    name = "events"

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", [EventFile.flush, EventFile.close])
def test_a_full_disk_is_one_line(tmp_path: Path, call: Callable[[EventFile], None]) -> None:
    file = EventFile(tmp_path)
    file._file = Full()
    file.add(1, tag="t", simple_value=1.0)
    line = r"^cannot write events: No space left on device; .*--no-tensorboard$"
    with pytest.raises(InputError, match=line):
        call(file)
    file._file = None


def test_a_disk_that_fills_up_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: EventFile) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(EventFile, "_open", no_room)
    listener = Listener()
    with pytest.raises(InputError, match="No space left on device; make room for event files"):
        train(tmp_path / "run", listener=listener)
    assert not listener.open, "the reporter was closed"


# --- from the command line ------------------------------------------------------------------


WORDS = ("train", "--device", "cpu", "--filters", 2, "--batch-size", 16, "--epochs", 1)


def test_the_command_writes_events_unless_told_not_to(here: Here) -> None:
    result = here(*WORDS, "--no-tensorboard")
    assert result.status == 0 and "tensorboard" not in result.out
    assert list(Path("runs").rglob(PATTERN)) == []
    result = here(*WORDS, "--restart")
    assert result.status == 0 and "  tensorboard --logdir runs\n" in result.out
    assert len(list(Path("runs").rglob(PATTERN))) == 2


def test_restart_begins_the_events_anew(here: Here) -> None:
    assert here(*WORDS).status == 0
    (run,) = Path("runs").glob("*/*")
    old = set(run.rglob(PATTERN))
    before = events_of(run)
    assert here(*WORDS, "--restart").status == 0
    assert events_of(run) == before and old.isdisjoint(run.rglob(PATTERN))
