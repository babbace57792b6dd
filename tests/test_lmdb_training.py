"""Training that streams from databases: the same figures, exact resume, both backends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest
from lmdb_cases import pixels, write_images
from training_cases import Listener, run_contents

from cae_raw.backends import NUMPY, Backend
from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.data import DataOptions, Dataset, Split, load_dataset
from cae_raw.errors import InputError
from cae_raw.training.config import TrainConfig
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession, measure

SHAPE = (3, 12, 13)
IMAGES = pixels(90, SHAPE)
CONFIG = TrainConfig(dataset="lmdb", model="deep", code_size=6, batch_size=16, optimizer="sgd")
EPOCHS = 2


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    path = write_images(tmp_path / "train.lmdb", IMAGES)
    return load_dataset("lmdb", DataOptions(data_dir=path))


def train(
    folder: Path, dataset: Dataset, stop_at: int | None = None, backend: Backend = NUMPY
) -> RunSession:
    folder.mkdir(exist_ok=True)
    session = RunSession(CONFIG, dataset, RunDir(folder), backend=backend, threads=2)

    def hear(position: int, _: object) -> None:
        if position == stop_at:
            signal.raise_signal(signal.SIGINT)

    session.train(EPOCHS, Listener(hear), 1e9)
    return session


def test_the_last_tenth_is_kept_for_validation(dataset: Dataset) -> None:
    assert (len(dataset.train), len(dataset.validation)) == (81, 9)
    np.testing.assert_array_equal(dataset.train.first(3), IMAGES[:3])
    np.testing.assert_array_equal(dataset.validation.first(9), IMAGES[81:])
    assert dataset.test is dataset.validation
    assert "kept for validation" in dataset.notes[0]
    seen = np.concatenate(list(dataset.train.shuffled(1, 0, 16)))
    assert sorted(a.tobytes() for a in seen) == sorted(a.tobytes() for a in IMAGES[:81])


def test_another_database_validates(tmp_path: Path, dataset: Dataset) -> None:
    other = write_images(tmp_path / "val.lmdb", pixels(7, SHAPE, seed=2))
    options = DataOptions(data_dir=tmp_path / "train.lmdb", validation_dir=other)
    both = load_dataset("lmdb", options)
    assert (len(both.train), len(both.validation), both.notes) == (90, 7, ())
    small = write_images(tmp_path / "small.lmdb", pixels(7, (3, 8, 8)))
    with pytest.raises(InputError, match="give both one size with --resize"):
        load_dataset("lmdb", DataOptions(data_dir=other, validation_dir=small))
    few = write_images(tmp_path / "few.lmdb", pixels(2, SHAPE))
    with pytest.raises(InputError, match="too few to hold some back"):
        load_dataset("lmdb", DataOptions(data_dir=few))
    with pytest.raises(InputError, match="needs --data-dir"):
        load_dataset("lmdb", DataOptions())


@pytest.mark.parametrize("stops", [[3], [7], [2, 9], [6, 1]])
def test_resumed_is_as_never_stopped(tmp_path: Path, dataset: Dataset, stops: list[int]) -> None:
    train(tmp_path / "whole", dataset)
    for stop in stops:
        train(tmp_path / "parts", dataset, stop)
    train(tmp_path / "parts", dataset)
    whole: dict[str, Any] = run_contents(tmp_path / "whole")
    assert run_contents(tmp_path / "parts") == whole


def test_a_database_that_changed_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    train(tmp_path / "run", dataset, stop_at=2)
    changed = write_images(tmp_path / "other.lmdb", pixels(90, SHAPE, seed=9))
    with pytest.raises(InputError, match="was trained with other images"):
        train(tmp_path / "run", load_dataset("lmdb", DataOptions(data_dir=changed)))


def test_streamed_figures_are_those_of_the_images(dataset: Dataset) -> None:
    model = CONFIG.make_model(SHAPE)
    streamed = measure(model, dataset.train)
    assert streamed.half_mse == pytest.approx(
        measure(model, Split(IMAGES[:81], None)).half_mse, rel=1e-12
    )


@pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))
def test_kernels_train_on_what_streams(tmp_path: Path, dataset: Dataset) -> None:
    on_cpu = train(tmp_path / "cpu", dataset).trainer
    backend = CudaBackend(emulator.emulated_cupy())
    on_gpu = train(tmp_path / "gpu", dataset, backend=backend).trainer
    assert len(on_gpu.state.history) == EPOCHS
    for mine, reference in zip(on_gpu.state.history, on_cpu.state.history, strict=True):
        assert mine.train_half_mse == pytest.approx(reference.train_half_mse, rel=1e-5)
        assert mine.validation_half_mse == pytest.approx(reference.validation_half_mse, rel=1e-5)
    np.testing.assert_allclose(
        backend.to_numpy(on_gpu.model.parameters), on_cpu.model.parameters, atol=1e-4
    )
