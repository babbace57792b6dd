"""Training a run: the trainer, with everything written to its folder so that it can be resumed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from cae_raw import __version__
from cae_raw.backends import NUMPY, Backend
from cae_raw.data.base import Dataset, Images
from cae_raw.data.scaling import to_bytes
from cae_raw.errors import InputError
from cae_raw.figures import Figures
from cae_raw.files import remove_leftovers
from cae_raw.machine import peak_memory
from cae_raw.models import Autoencoder
from cae_raw.ops.precision import check_precision
from cae_raw.pictures.grid import reconstructions_grid
from cae_raw.pictures.save import save_png
from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.config import TrainConfig
from cae_raw.training.engine import Engine
from cae_raw.training.feed import Feed
from cae_raw.training.run_dir import RunDir
from cae_raw.training.saves import Saves, to_resume_from
from cae_raw.training.trainer import BatchDone, EpochDone, Trainer, TrainState, figures_of

SHOWN_IMAGES = 16  # in reconstructions.png
PICTURE_SECONDS = 2.0  # between two of them: one takes 20 ms, as a GPU does for an epoch


class Reporter(Protocol):
    """Hears how a training goes; see `progress`."""

    def begin(self, trainer: Trainer, epochs: int) -> None: ...
    def batch(self, done: BatchDone) -> None: ...
    def epoch(self, done: EpochDone) -> None: ...
    def end(self) -> None: ...


class Recorder(Reporter, Protocol):
    """A Reporter that leaves something on the disk; see `events`.

    It hears of a batch or an epoch before the checkpoint that contains it is saved, and is asked
    to flush then: so whatever a kill leaves, nothing that the checkpoint stands for is missing.
    """

    def flush(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    run: RunDir
    state: TrainState
    trained_epochs: int  # finished by this call
    signal: int | None = None  # that stopped it, None when all epochs are done
    validation: Figures | None = None  # of the best checkpoint
    test: Figures | None = None
    peak_memory_bytes: int | None = None  # of this process so far; None where it is not known

    def to_json(self) -> dict[str, Any]:
        state = self.state
        return {
            "run": str(self.run.path),
            "finished": self.signal is None,
            "epochs": state.epoch,
            "steps": state.step,
            "best_epoch": state.best_epoch,
            "seconds": sum(record.seconds for record in state.history),
            "images_per_second": state.history[-1].images_per_second if state.history else None,
            "validation": self.validation.to_json() if self.validation else None,
            "test": self.test.to_json() if self.test else None,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


class RunSession:
    """One process's work on a run; create it with the run's lock held.

    Args:
        config: decides the model, the optimizer and the order of the examples.
        dataset: the one that the configuration names.
        run: its folder. What lies there is continued if it is of the same configuration.
        backend, threads: who does the work.

    Raises:
        InputError: if the folder holds a run of another configuration or other data, or a damaged
            checkpoint, or the configuration's precision is nothing for the backend.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        run: RunDir,
        *,
        backend: Backend = NUMPY,
        threads: int | None = None,
    ) -> None:
        check_precision(config.precision, backend)
        self.run = run
        self._pictured_at = time.monotonic()
        model = config.make_model(dataset.train.image_shape).to(backend)
        self.trainer = Trainer(
            model,
            dataset,
            config.make_optimizer(model),
            batch_size=config.batch_size,
            seed=config.seed,
            lr_decay_epochs=config.lr_decay_epochs,
            lr_decay_factor=config.lr_decay_factor,
            flip=config.flip,
            loss=config.loss,
            sparsity=config.sparsity,
            threads=threads,
        )
        self.config: dict[str, Any] = {
            "train": config.to_json(),
            "model": {"name": model.name, **model.options},
            "data": _fingerprint(dataset),
            "value_range": list(model.value_range),
            "cae_raw": __version__,
        }
        remove_leftovers(run.path)
        saved = to_resume_from(run)
        self.resumed = saved is not None
        self._last_is_behind = saved is not None and saved.path != run.last
        if saved is not None:
            self._restore(saved)

    def _restore(self, saved: Checkpoint) -> None:
        theirs, mine = _what_must_agree(saved.config), _what_must_agree(self.config)
        for part, what in (("train", "hyper-parameters"), ("model", "model"), ("data", "images")):
            if theirs.get(part) != mine[part]:
                raise InputError(
                    f"{self.run.path} was trained with other {what}: "
                    "give this run a --comment, or --restart it"
                )
        trainer = self.trainer
        trainer.model.load_parameters(saved.build_model().parameters)
        trainer.optimizer.load_state(saved.optimizer)
        trainer.state = TrainState.from_json(saved.state)

    def train(
        self,
        epochs: int,
        reporter: Reporter,
        save_every_seconds: float = 60,
        recorder: Recorder | None = None,
    ) -> Outcome:
        """Train until `epochs` epochs are done in all, or until SIGINT or SIGTERM.

        Whatever ends it, the folder holds a checkpoint from which the same call goes on exactly.
        """
        trainer, run = self.trainer, self.run
        before = trainer.state.epoch
        if not self.resumed:
            run.best.unlink(missing_ok=True)  # of a run whose deletion was not finished
        run.write_config(self.config)
        run.write_metrics(trainer.state.history)
        flush = () if recorder is None else (recorder.flush,)
        saves = Saves(run, self._checkpoint, *flush)
        heard_by = [reporter] if recorder is None else [recorder, reporter]
        for listener in heard_by:
            listener.begin(trainer, epochs)
        try:
            with _stop_requests() as stop:
                if self._last_is_behind:
                    saves.now()
                for done in trainer.steps(epochs):
                    if isinstance(done, EpochDone):
                        if recorder is not None:
                            recorder.epoch(done)
                        saves.epoch(trainer.state.history, is_best=done.is_best)
                        self._draw_if_due()
                        reporter.epoch(done)
                    else:
                        for listener in heard_by:
                            listener.batch(done)
                        if not stop:
                            saves.catch_up()
                            if saves.seconds_ago >= save_every_seconds:
                                saves.now()
                    if stop:
                        saves.now()
                        done_here = trainer.state.epoch - before
                        return Outcome(
                            run, trainer.state, done_here, stop[0], peak_memory_bytes=peak_memory()
                        )
                saves.write()
                validation, test = self._write_results()
        except BaseException:
            with suppress(Exception):  # the first one tells more
                saves.write()
            raise
        finally:
            for listener in reversed(heard_by):
                listener.end()
        done_here = trainer.state.epoch - before
        return Outcome(run, trainer.state, done_here, None, validation, test, peak_memory())

    def _checkpoint(self) -> Checkpoint:
        model, optimizer = self.trainer.model, self.trainer.optimizer
        on_host = model.backend is NUMPY
        parameters = model.backend.to_numpy(model.parameters)
        return Checkpoint(
            parameters=model.split(parameters.copy() if on_host else parameters),
            optimizer=optimizer.state_to_host(),
            config=self.config,
            state=self.trainer.state.to_json(),
        )

    def _draw_if_due(self) -> None:
        if time.monotonic() - self._pictured_at >= PICTURE_SECONDS:
            self._write_picture(self.trainer.engine)

    def _write_picture(self, engine: Engine) -> None:
        self._pictured_at = time.monotonic()
        inputs = self.trainer.dataset.test.first(SHOWN_IMAGES)
        outputs = to_bytes(engine.reconstruct(inputs), engine.model.value_range)
        save_png(reconstructions_grid(inputs, outputs), self.run.reconstructions)

    def _write_results(self) -> tuple[Figures, Figures]:
        """Measure the best checkpoint on the validation and the test split, and write it down."""
        best = checkpoint.load(self.run.best)
        model, dataset = best.build_model(), self.trainer.dataset
        model.to(self.trainer.model.backend)
        threads = self.trainer.engine.threads
        validation = measure(model, dataset.validation, threads)
        same = dataset.test is dataset.validation
        test = validation if same else measure(model, dataset.test, threads)
        for split, figures in (("validation", validation), ("test", test)):
            self.run.write_results(split, figures, best.state["best_epoch"])
        with Engine(model, dataset.train.image_shape, threads=threads) as engine:
            self._write_picture(engine)
        return validation, test


def measure(model: Autoencoder, split: Images, threads: int | None = None) -> Figures:
    """The reconstruction error of a model over a split, on the model's backend."""
    engine = Engine(model, split.image_shape, threads=threads)
    return figures_of(engine, Feed(model.backend), split)


def check_same_data(trained_on: dict[str, Any], dataset: Dataset, run: Path) -> None:
    """Refuse a data set that is not the one a run was trained on."""
    if trained_on != _fingerprint(dataset):
        raise InputError(
            f"{run} was trained on other images than these of {dataset.name}: "
            "name the folder they lie in with --data-dir"
        )


def _what_must_agree(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration less where its images lie: a checksum says that they are the same.

    Options that are younger than the run have their defaults.
    """
    train = {**TrainConfig().to_json(), **config.get("train", {}), "data_dir": None, "val": None}
    return {**config, "train": train}


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What tells two data sets apart: their images."""
    return {
        "name": dataset.name,
        "train": dataset.train.fingerprint(),
        "validation": dataset.validation.fingerprint(),
        "test": dataset.test.fingerprint(),
    }


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that receives the number of a SIGINT or SIGTERM; a second one acts as usual."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def remember(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            previous[name] = signal.signal(name, remember)
    except ValueError:  # not the main thread: whoever runs the process handles its signals
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
