"""Threads or processes: the same bits, and processes only where they are of use."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engine import Dawdle, pooling_without_code
from test_staged import convolution_between, deep, linear_layers_only
from test_workers import is_running, pids_of
from training_cases import (
    make_dataset,
    make_images,
    pooling_model,
    run_contents,
    write_image_folder,
)

from cae_raw.errors import InputError
from cae_raw.layers import Conv2d
from cae_raw.models import Autoencoder, single_layer
from cae_raw.training import crew, staged
from cae_raw.training.crew import Crew
from cae_raw.training.engine import Engine
from cae_raw.training.optimizers import Adam
from cae_raw.training.trainer import Trainer
from cae_raw.training.workers import supported

pytestmark = pytest.mark.skipif(not supported(), reason="needs memory files")

CHUNK = 4
BATCHES = [1, 37, 0, CHUNK, 61]  # the last is several waves
IMAGES = 64
NEVER = 1e9

# A model, its images, and whether its fused step is used.
CASES: dict[str, tuple[Callable[[Any], Autoencoder], tuple[int, int, int], bool]] = {
    "fused": (lambda rng: single_layer(3, 8, rng), (3, 9, 11), True),
    "layered": (lambda rng: single_layer(3, 8, rng), (3, 9, 11), False),
    "pooling without code": (pooling_without_code, (1, 6, 4), True),
    "deep": (deep, (3, 12, 13), True),
    "pooling": (pooling_model, (1, 6, 4), True),
    "linear layers only": (linear_layers_only, (1, 6, 4), True),
    "a convolution between": (convolution_between, (1, 6, 4), True),
}


@pytest.fixture(autouse=True)
def small_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "WAVE", 5 * CHUNK)
    monkeypatch.setattr(crew, "PATIENCE", 0.0)


def make_engine(name: str, threads: int, dtype: type = np.float32) -> Engine:
    make, shape, fused = CASES[name]
    model = make(np.random.default_rng(5)).astype(dtype)
    engine = Engine(model, shape, threads=threads, fused=fused)
    engine.chunk = CHUNK
    return engine


def crew_of(engine: Engine) -> Crew:
    assert engine._crew is not None
    return engine._crew


def wait_for_workers(engine: Engine) -> list[int]:
    """Their process ids, when they have taken over."""
    engine.squared_error(make_images(IMAGES, engine.image_shape))
    deadline = time.monotonic() + 60
    while not crew_of(engine).by_processes:
        assert time.monotonic() < deadline
        crew_of(engine).begin()
        time.sleep(0.01)
    workers = crew_of(engine).workers
    assert workers is not None
    return pids_of(workers)


def train(engine: Engine) -> bytes:
    """All that a few steps of training yield."""
    rng, images = np.random.default_rng(7), make_images(IMAGES, engine.image_shape)
    optimizer, bits = Adam(engine.model), b""
    for batch in BATCHES:
        total = engine.step(images, rng.permutation(IMAGES)[:batch])
        optimizer.step(engine.gradients, engine.in_order)
        error = engine.squared_error(images[:batch])
        bits += engine.gradients.tobytes() + total.tobytes() + np.float64(error).tobytes()
    return bits + engine.model.parameters.tobytes()


# --- bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_by_threads_and_by_processes(
    name: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = set()
    with make_engine(name, 3, dtype) as engine:
        assert len(wait_for_workers(engine)) == 2
        results.add(train(engine))
        assert crew_of(engine).by_processes
    monkeypatch.setattr(crew, "PATIENCE", NEVER)
    for threads in (1, 2, 3):
        with make_engine(name, threads, dtype) as engine:
            results.add(train(engine))
            assert crew_of(engine).workers is None
    assert len(results) == 1
    assert len(set(next(iter(results)))) > 100  # not all zeros


def test_same_bits_when_they_take_over_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE", NEVER)
    with make_engine("deep", 2) as engine:
        images, optimizer = make_images(IMAGES, engine.image_shape), Adam(engine.model)
        for step in range(9):
            if step == 3:
                monkeypatch.setattr(crew, "PATIENCE", 0.0)
            if step == 6:
                wait_for_workers(engine)
            engine.step(images, np.arange(40))
            optimizer.step(engine.gradients, engine.in_order)
        changed = engine.model.parameters.copy()
    with make_engine("deep", 1) as engine:
        optimizer = Adam(engine.model)
        for _ in range(9):
            engine.step(images, np.arange(40))
            optimizer.step(engine.gradients)
    np.testing.assert_array_equal(changed, engine.model.parameters)


def test_parameters_that_are_replaced_or_written_to() -> None:
    errors = []
    for threads in (1, 2):
        with make_engine("pooling", threads) as engine:
            images = make_images(IMAGES, engine.image_shape)
            if threads == 2:
                wait_for_workers(engine)
            engine.model.load_parameters(engine.model.parameters * 2)
            errors.append(engine.squared_error(images))
            engine.model.params["9.bias"][...] = 3
            errors.append(engine.squared_error(images))
    assert errors[:2] == errors[2:] and errors[0] != errors[1]


def test_parameters_are_at_home_afterwards() -> None:
    """Whoever held views of them sees what was learned, and no memory file is held open."""
    gc.collect()
    before_all = sorted(os.listdir("/proc/self/fd"))
    engine = make_engine("deep", 2)
    model = engine.model
    flat, weight = model.parameters, model.params["0.weight"]
    before = weight.copy()
    with engine:
        wait_for_workers(engine)
        train(engine)
        learned = model.parameters.copy()
        assert model.parameters is not flat
    assert model.parameters is flat and np.shares_memory(model.stack[0].params["weight"], flat)
    np.testing.assert_array_equal(flat, learned)
    assert not np.array_equal(weight, before)
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before_all


def test_two_engines_on_one_model() -> None:
    first, second = make_engine("fused", 2), make_engine("fused", 2)
    second.model = first.model
    images = make_images(IMAGES, first.image_shape)
    with first:
        wait_for_workers(first)
        expected = first.squared_error(images)
        with second:
            wait_for_workers(second)
            assert second.squared_error(images) == expected
            first.model.parameters[:] *= 2
            doubled = second.squared_error(images)
            assert first.squared_error(images) == doubled != expected
        assert first.squared_error(images) == doubled


# --- when -------------------------------------------------------------------------------------


def test_short_work_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE", 1e-9)
    with make_engine("fused", 2) as engine:
        images = make_images(IMAGES, engine.image_shape)
        for _ in range(5):
            engine.step(images, np.arange(CHUNK))  # one chunk: nobody else could help
        assert crew_of(engine).workers is None
        engine.step(images, np.arange(IMAGES))
        assert crew_of(engine).workers is None
        engine.step(images, np.arange(IMAGES))
        assert crew_of(engine).workers is not None


def test_no_more_are_started_than_a_batch_has_chunks() -> None:
    with make_engine("fused", 16) as engine:
        images = make_images(3 * CHUNK, engine.image_shape)
        for _ in range(2):
            engine.step(images, np.arange(3 * CHUNK))
        workers = crew_of(engine).workers
        assert workers is not None and len(pids_of(workers)) == 2


def test_one_thread_starts_none() -> None:
    with make_engine("fused", 1) as engine:
        train(engine)
        assert crew_of(engine).workers is None
        assert threading.active_count() == 1


def test_layers_of_others_stay_here(rng: np.random.Generator) -> None:
    dawdle = Dawdle()
    model = Autoencoder(dawdle, Conv2d(1, 1, 3, padding=1, rng=rng), encoder_length=1, channels=1)
    with Engine(model, (1, 6, 5), threads=2) as engine:
        engine.chunk = 8
        engine.step(make_images(16), np.arange(16))
        engine.step(make_images(16), np.arange(16))
        assert crew_of(engine).workers is None
    assert dawdle.order


@pytest.mark.parametrize("how", ["unsupported", "no program", "no file"])
def test_threads_do_without_them(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError("no more files")

    if how == "unsupported":
        monkeypatch.setattr(crew, "supported", lambda: False)
    elif how == "no program":
        monkeypatch.setattr(sys, "executable", "/does/not/exist")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
    with make_engine("deep", 2) as engine:
        parameters = engine.model.parameters
        found = train(engine)
        assert not crew_of(engine).by_processes
    assert engine.model.parameters is parameters
    with make_engine("deep", 1) as engine:
        assert train(engine) == found


def test_nesting_starts_them_once() -> None:
    engine = make_engine("fused", 2)
    images = make_images(IMAGES, engine.image_shape)
    with engine:
        pids = wait_for_workers(engine)
        with engine:
            engine.step(images, np.arange(IMAGES))
        engine.step(images, np.arange(IMAGES))
        assert wait_for_workers(engine) == pids and all(map(is_running, pids))
    assert not any(map(is_running, pids))
    with engine:
        assert wait_for_workers(engine) != pids


def test_an_epoch_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation of a trainer, whose engine is entered twice."""
    results = []
    for patience in (0.0, NEVER):
        monkeypatch.setattr(crew, "PATIENCE", patience)
        dataset = make_dataset(train=200, validation=50)
        model = single_layer(1, 4, np.random.default_rng(0))
        trainer = Trainer(model, dataset, Adam(model), batch_size=20, threads=2)
        trainer.engine.chunk = CHUNK
        by_processes = 0
        with trainer.engine:
            if patience == 0:
                wait_for_workers(trainer.engine)
            trainer.fit(2)
            by_processes += crew_of(trainer.engine).by_processes
        results.append((model.parameters.tobytes(), trainer.state.best))
        assert by_processes == (patience == 0)
    assert results[0] == results[1]


# --- ends -------------------------------------------------------------------------------------


def test_a_killed_worker_is_one_line_and_threads_go_on() -> None:
    with make_engine("deep", 3) as engine:
        images = make_images(IMAGES, engine.image_shape)
        (first, _) = wait_for_workers(engine)
        expected = engine.step(images, np.arange(IMAGES))
        os.kill(first, signal.SIGKILL)
        with pytest.raises(InputError, match="a worker process was killed by signal 9"):
            for _ in range(3):
                engine.step(images, np.arange(IMAGES))
        assert engine.step(images, np.arange(IMAGES)) == expected
        assert not crew_of(engine).by_processes


TRAIN = """
import sys
from cae_raw.app import main
from cae_raw.training import cpu_step, crew
from cae_raw.training.workers import Workers
note, patience = sys.argv[1:3]
cpu_step.CHUNK_BYTES, crew.PATIENCE = 1, float(patience)
run = Workers.run
def noted(self, *arguments, **named):
    open(note, "a").write(f"{self._workers[0].process.pid}\\n")
    run(self, *arguments, **named)
Workers.run = noted
main(sys.argv[3:])
"""


def arguments(images: Path, runs: Path, epochs: int) -> list[object]:
    return [
        *("train", "--dataset", "folder", "--data-dir", images, "--size", 8),
        *("--filters", 2, "--batch-size", 20, "--device", "cpu", "--threads", 2),
        *("--runs-dir", runs, "--epochs", epochs),
    ]


def in_chunks_of_one(note: Path, patience: float, *words: object) -> list[str]:
    return list(map(str, [sys.executable, "-c", TRAIN, note, patience, *words]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_and_ends_everybody(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As Ctrl-C does; what was saved goes on, by threads, as if there had been threads always."""
    images, note, epochs = tmp_path / "pictures", tmp_path / "note", 100_000
    write_image_folder(images)
    words = in_chunks_of_one(note, 0, *arguments(images, tmp_path / "runs", epochs))
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        while not note.exists():
            assert process.stdout.readline(), process.stderr.read()
        os.killpg(process.pid, number)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and errors == ""
    assert not is_running(int(note.read_text().split()[0]))
    told, command = out.splitlines()[-2:]
    assert told.endswith("everything is saved. To go on:")
    (run,) = (tmp_path / "runs").glob("single-layer/*")
    epochs = len((run / "metrics.csv").read_text().splitlines())  # one more than are done
    again = shlex.split(command)[3:]  # behind the program and what TRAIN takes
    again[again.index("--epochs") + 1] = str(epochs)
    for more in (again, arguments(images, tmp_path / "whole", epochs)):
        done = subprocess.run(
            in_chunks_of_one(tmp_path / "none", NEVER, *more),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "none").exists()
    (whole,) = (tmp_path / "whole").glob("single-layer/*")
    assert run_contents(run) == run_contents(whole)
