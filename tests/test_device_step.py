"""Recorded steps against launched ones: the same bits, no new memory, nothing read too late."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest
from deep_cases import CODE, SIZE
from lmdb_cases import pixels, write_images
from training_cases import make_dataset

from cae_raw.backends import Backend, choose_backend, probe
from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.data import DataOptions, Dataset, load_dataset
from cae_raw.errors import InputError
from cae_raw.models import Autoencoder, build
from cae_raw.training import device_step, trainer
from cae_raw.training.device_step import DeviceStep
from cae_raw.training.optimizers import SGD, Adam, Optimizer
from cae_raw.training.trainer import BatchDone, EpochDone, EpochRecord, Trainer, TrainState

emulates = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))

SHAPE = (3, *SIZE)
BATCH, EPOCHS = 4, 4  # of 21 images: 5 full batches and one of a single image
MakeOptimizer = Callable[[Autoencoder], Optimizer]


def adam(model: Autoencoder) -> Optimizer:
    return Adam(model, lr=3e-3)


def sgd(model: Autoencoder) -> Optimizer:
    return SGD(model, lr=0.02, momentum=0.9, l2=model.l2(1e-3))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_dataset(21, 3, 3, shape=SHAPE)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaBackend]:
    """The emulator alone: what these tests look at, CuPy does not tell."""
    if emulator.available() is not None:
        pytest.skip(f"no emulator: {emulator.available()}")
    monkeypatch.setattr(probe, "_opened", {})
    with emulator.installed(emulator.emulated_cupy()):
        backend = choose_backend("cuda")
        assert isinstance(backend, CudaBackend)
        yield backend


def make(name: str) -> Autoencoder:
    rng = np.random.default_rng(1)
    if name == "deep":
        return build(name, rng, channels=3, size=SIZE, code_size=CODE)
    return build(name, rng, channels=3, filters=2)


def new_trainer(
    backend: Backend,
    data: Dataset,
    optimizer: MakeOptimizer = adam,
    model: str = "single-layer",
    *,
    layered: bool = False,
    recorded: bool = True,
    flip: bool = False,
) -> Trainer:
    made = make(model)
    if layered:
        made.fused_cuda = None
    made.to(backend)
    new = Trainer(
        made, data, optimizer(made), batch_size=BATCH, seed=2, lr_decay_epochs=2,
        lr_decay_factor=0.5, flip=flip,
    )  # fmt: skip
    step_of(new)._possible = recorded
    return new


def step_of(trainer: Trainer) -> DeviceStep:
    assert trainer._device_step is not None
    return trainer._device_step


def without_times(record: EpochRecord) -> dict[str, Any]:
    return {**vars(record), "seconds": None, "images_per_second": None}


def contents(trainer: Trainer) -> dict[str, Any]:
    """All that two trainings must share, comparable bit for bit."""
    return {
        "parameters": trainer.model.backend.to_numpy(trainer.model.parameters).tobytes(),
        "optimizer": {k: v.tobytes() for k, v in trainer.optimizer.state_to_host().items()},
        "state": {**trainer.state.to_json(), "seconds": None, "history": None},
        "history": [without_times(record) for record in trainer.state.history],
    }


def events(trainer: Trainer, epochs: int = EPOCHS) -> list[BatchDone]:
    return [e for e in trainer.steps(epochs) if isinstance(e, BatchDone)]


def trained(backend: Backend, data: Dataset, *arguments: Any, **options: Any) -> Trainer:
    new = new_trainer(backend, data, *arguments, **options)
    new.fit(EPOCHS)
    return new


@pytest.fixture
def expected(data: Dataset, emulated: CudaBackend) -> dict[str, Any]:
    """What the single-layer model with Adam comes to, kernel by kernel."""
    return contents(trained(emulated, data, recorded=False))


@pytest.mark.parametrize(
    ("model", "layered", "optimizer"),
    [
        ("single-layer", False, adam),
        ("single-layer", False, sgd),
        ("single-layer", True, adam),
        ("deep", True, sgd),
    ],
)
def test_a_recorded_training_has_the_same_bits(
    backend: Backend,
    data: Dataset,
    model: str,
    layered: bool,
    optimizer: MakeOptimizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Over 20 full batches and 4 smaller ones, with a learning rate that changes on the way."""
    given = (backend, data, optimizer, model)
    launched = new_trainer(*given, layered=layered, recorded=False)
    recorded = new_trainer(*given, layered=layered)
    for one in (launched, recorded):
        one.report_batches = 1
    assert events(recorded) == events(launched)
    assert contents(recorded) == contents(launched)
    records = recorded.state.history
    assert records[-1].lr == 0.5 * records[0].lr
    assert records[-1].train_half_mse < records[0].train_half_mse, "nothing was learned"
    assert step_of(recorded)._graph is not None and step_of(launched)._graph is None
    assert "note" not in capsys.readouterr().err


def test_all_but_the_first_full_batch_is_replayed(emulated: CudaBackend, data: Dataset) -> None:
    new = new_trainer(emulated, data)
    before = emulator.launch_count()
    step = step_of(new)
    batch = np.arange(BATCH)
    images = emulated.asarray(data.train.images)
    counts = []
    for _ in range(4):
        step(images, batch)
        counts.append(emulator.launch_count() - before)
    assert counts == [3, 6, 9, 12], "step, reduction and optimizer"
    assert step._graph.launches == 3
    assert len(step._graph.recorded) == 3


def test_a_replay_allocates_nothing(emulated: CudaBackend, data: Dataset) -> None:
    for model, layered in (("single-layer", False), ("deep", True)):
        step = step_of(new_trainer(emulated, data, model=model, layered=layered))
        images = emulated.asarray(data.train.images)
        device = emulated.cupy.cuda._current()
        allocated = []
        for k in range(5):
            before = device.allocations
            step(images, np.arange(k, k + BATCH))
            allocated.append(device.allocations - before)
        assert allocated[0] > 0 and allocated[1] > 0, "nothing was counted"
        assert allocated[2:] == [0, 0, 0]


@pytest.mark.parametrize("stop_at", [1, 2, 8, 12])
def test_resumes_in_the_middle_of_an_epoch(backend: Backend, data: Dataset, stop_at: int) -> None:
    """At each event all that makes up the state can be saved, wherever the interval ended."""
    through = contents(trained(backend, data))
    first = new_trainer(backend, data)
    first.report_batches = 2
    for number, _ in enumerate(first.steps(EPOCHS), 1):
        if number == stop_at:
            break
    saved = copy.deepcopy(first.state.to_json())
    parameters = backend.to_numpy(first.model.parameters).copy()
    optimizer = first.optimizer.state_to_host()
    second = new_trainer(backend, data)
    second.model.load_parameters(parameters)
    second.optimizer.load_state(optimizer)
    second.state = TrainState.from_json(saved)
    second.fit(EPOCHS)
    assert contents(second) == through


# --- when errors are read -------------------------------------------------------------------


def test_errors_are_read_once_an_interval(
    backend: Backend, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "REPORT_SECONDS", 0.0)
    every = events(new_trainer(backend, data), 2)
    assert [e.images for e in every] == 2 * [4, 4, 4, 4, 4, 1]
    monkeypatch.setattr(trainer, "REPORT_SECONDS", 1e9)
    once = events(new_trainer(backend, data), 2)
    assert once == [BatchDone(21, every[k].half_mse) for k in (5, 11)]
    some = new_trainer(backend, data)
    some.report_batches = 4
    assert events(some, 1) == [BatchDone(16, every[3].half_mse), BatchDone(5, every[5].half_mse)]
    monkeypatch.setattr(device_step, "ERRORS", 5)
    assert [e.images for e in events(new_trainer(backend, data), 1)] == [20, 1]


def test_a_training_that_diverges_is_told_where_it_did(
    backend: Backend, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(trainer, "REPORT_SECONDS", seconds)
        bad = new_trainer(backend, data, lambda m: SGD(m, lr=1e6), "deep", layered=True)
        with pytest.raises(InputError, match=r"training diverged.* after step [1-9]") as caught:
            bad.fit(EPOCHS)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_errors_of_steps_that_were_cut_off_are_not_counted(
    backend: Backend, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = new_trainer(backend, data)
    step, calls = DeviceStep.__call__, []

    def interrupted(self: DeviceStep, images: Any, indices: np.ndarray) -> None:
        step(self, images, indices)
        calls.append(len(indices))
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(DeviceStep, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.fit(1)
    new.fit(1)
    assert new.state.step == 6 and sum(calls) == 3 * BATCH + 21


# --- what a graph reads ---------------------------------------------------------------------


class NoWaiting:
    """An event that does not wait."""

    def __init__(self, **_: Any) -> None:
        """Nothing to keep."""

    def record(self) -> None:
        """Nor to remember."""

    def synchronize(self) -> None:
        """Nor to wait for."""


def test_indices_of_later_batches_leave_those_in_use_alone(
    emulated: CudaBackend,
    data: Dataset,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a GPU that does everything at the latest; and the test sees a missing wait."""
    monkeypatch.setattr(device_step, "SLOTS", 2)
    with emulator.deferred():
        assert contents(trained(emulated, data)) == expected
        monkeypatch.setattr(emulated.cupy.cuda, "Event", NoWaiting)
        assert contents(trained(emulated, data)) != expected


def test_other_arrays_are_recorded_anew(emulated: CudaBackend, data: Dataset) -> None:
    """Parameters and state that were loaded, and settings that were changed, in mid-training."""
    results = []
    for recorded in (False, True):
        new = new_trainer(emulated, data, sgd, recorded=recorded)
        new.report_batches = 1
        graphs = set()
        for number, _ in enumerate(new.steps(EPOCHS)):
            graphs.add(step_of(new)._graph)
            if number == 4:
                new.optimizer.load_state(new.optimizer.state_to_host())
            if number == 9:
                new.model.load_parameters(emulated.to_numpy(new.model.parameters) / 2)
            if number == 14:
                assert isinstance(new.optimizer, SGD)
                new.optimizer.momentum = 0.5
        results.append(contents(new))
        assert len(graphs - {None}) == (4 if recorded else 0)
    assert results[0] == results[1]


def test_a_new_learning_rate_needs_no_new_graph(emulated: CudaBackend, data: Dataset) -> None:
    new = new_trainer(emulated, data)
    graphs = set()
    new.report_batches = 5
    for done in new.steps(EPOCHS):
        if isinstance(done, BatchDone):
            graphs.add(step_of(new)._graph)
    assert len(graphs) == 1 and len({r.lr for r in new.state.history}) == 2


def test_memory_that_is_not_kept_would_be_noticed(emulated: CudaBackend, data: Dataset) -> None:
    step = step_of(new_trainer(emulated, data))
    images = emulated.asarray(data.train.images)
    for _ in range(3):
        step(images, np.arange(BATCH))
    step._held.clear()
    gc.collect()
    with pytest.raises(emulator.EmulatorError, match="memory that was freed"):
        step(images, np.arange(BATCH))


def test_streamed_batches_are_replayed_too(backend: Backend, tmp_path: Path) -> None:
    path = write_images(tmp_path / "train.lmdb", pixels(25, SHAPE))
    data = load_dataset("lmdb", DataOptions(data_dir=path))
    launched = trained(backend, data, recorded=False)
    recorded = trained(backend, data)
    assert step_of(recorded)._graph is not None
    assert contents(recorded) == contents(launched)


def test_flipped_batches_are_replayed_too(
    emulated: CudaBackend, data: Dataset, expected: dict[str, Any]
) -> None:
    recorded = trained(emulated, data, flip=True)
    assert step_of(recorded)._graph.launches == EPOCHS * 5 - 1
    assert contents(recorded) == contents(trained(emulated, data, flip=True, recorded=False))
    assert contents(recorded) != expected


# --- where it is not possible ---------------------------------------------------------------


def _unsupported(*_: Any) -> None:
    from cupy.cuda.runtime import CUDARuntimeError

    raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")


class Waiting(Adam):
    """An optimizer that looks at its state on the host, which no graph can do."""

    def step(self, gradients: Any, in_order: Any = map) -> None:
        assert self.lr > 0
        super().step(gradients, in_order)


@pytest.mark.parametrize("waits", [False, True])
def test_without_a_graph_it_is_launched_as_before(
    emulated: CudaBackend,
    data: Dataset,
    expected: dict[str, Any],
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not waits:
        monkeypatch.setattr(emulated.cupy.cuda.Stream, "begin_capture", _unsupported)
    found = trained(emulated, data, lambda m: Waiting(m, lr=3e-3) if waits else adam(m))
    assert contents(found) == expected
    assert step_of(found)._graph is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: training steps are launched kernel by kernel")
    assert not emulated.cupy.cuda.get_current_stream().is_capturing()


# --- the emulator ---------------------------------------------------------------------------


@emulates
def test_the_emulator_records_as_a_gpu_does() -> None:
    cupy = emulator.emulated_cupy()
    stream = cupy.cuda.Stream(non_blocking=True)
    a, b = cupy.zeros(4, cupy.float32), cupy.zeros(4, cupy.float32)
    with stream:
        stream.begin_capture()
        a.fill(3)
        b.data.copy_from_device_async(a.data, a.nbytes)
        graph = stream.end_capture()
    assert a.get().tolist() == b.get().tolist() == [0] * 4, "it was done while it was recorded"
    graph.launch()
    assert b.get().tolist() == [3] * 4
    a[...] = np.full(4, 5, np.float32)
    graph.launch()
    assert b.get().tolist() == [3] * 4
    error = cupy.cuda.runtime.CUDARuntimeError
    with pytest.raises(error, match="default stream"):
        cupy.cuda.Stream.null.begin_capture()
    for wait in (a.get, stream.synchronize, cupy.cuda.Event().synchronize):
        with stream:
            stream.begin_capture()
            with pytest.raises(error, match="the host waits"):
                wait()
            with pytest.raises(error, match="Invalidated"):
                stream.end_capture()
    with stream:
        stream.begin_capture()
        with pytest.raises(emulator.EmulatorError, match="compiled or loaded"):
            cupy.RawModule(code="").get_function("f")
        with pytest.raises(error, match="Invalidated"):
            stream.end_capture()


@emulates
def test_deferred_work_waits_for_the_host_to_wait() -> None:
    cupy = emulator.emulated_cupy()
    a, pinned = cupy.zeros(1, cupy.uint8), cupy.cuda.alloc_pinned_memory(1)
    event = cupy.cuda.Event()
    with emulator.deferred():
        pinned[0] = 1
        a.data.copy_from_host_async(pinned.ptr, 1)
        event.record()
        pinned[0] = 2
        event.synchronize()
        assert a._host[0] == 2, "the copy was not made at the latest"
        a.fill(7)
        assert a._host[0] == 2
        assert a.get()[0] == 7


def test_an_epoch_ends_with_an_event_of_its_own(backend: Backend, data: Dataset) -> None:
    kinds = [type(e) for e in new_trainer(backend, data).steps(2)]
    assert kinds[-1] is EpochDone and kinds.count(EpochDone) == 2
