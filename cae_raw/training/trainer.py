"""The training loop: epochs of shuffled batches, a validation error after each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any

import numpy as np

from cae_raw.data.base import Dataset, Images
from cae_raw.data.lmdb_stream import LmdbSplit
from cae_raw.errors import InputError
from cae_raw.figures import Figures
from cae_raw.models import Autoencoder
from cae_raw.training.device_step import DeviceStep
from cae_raw.training.engine import Engine
from cae_raw.training.feed import Feed
from cae_raw.training.optimizers import Optimizer

Array = Any

REPORT_SECONDS = 0.2  # of training on a GPU, after which its errors are read


@dataclass(frozen=True)
class EpochRecord:
    """One row of metrics.csv: what an epoch took and achieved."""

    epoch: int  # counted from 1
    step: int  # batches since the start of training
    seconds: float  # of this epoch, validation included
    images_per_second: float  # of its training part
    train_half_mse: float  # mean over the epoch, while the weights move
    validation_half_mse: float  # after the epoch
    lr: float


@dataclass
class TrainState:
    """Where a training stands, besides weights and optimizer. Everything a resumed run needs."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches done of the epoch under way
    step: int = 0  # batches done in all
    squared_error: float = 0.0  # summed over the epoch under way
    seconds: float = 0.0  # spent on the epoch under way
    best: float | None = None  # lowest validation half_mse
    best_epoch: int = 0
    history: list[EpochRecord] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        # As `asdict`, which takes ten times as long, in every save.
        return {**vars(self), "history": [dict(vars(record)) for record in self.history]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        history = [EpochRecord(**row) for row in values["history"]]
        return cls(**{**values, "history": history})


@dataclass(frozen=True)
class BatchDone:
    """A batch was trained on; on a GPU, where to ask for an error is to wait, perhaps several."""

    images: int  # since the last of these events
    half_mse: float  # of the last batch, before its step


@dataclass(frozen=True)
class EpochDone:
    """An epoch is over and its validation error is known."""

    record: EpochRecord
    is_best: bool


class Trainer:
    """Trains a model on a data set.

        trainer = Trainer(model, dataset, Adam(model, lr=1e-3))
        history = trainer.fit(epochs=5)

    The order of the examples is a function of (seed, epoch) alone, so a trainer that is given the
    state, weights and optimizer state of another continues it exactly.

    Args:
        model: on the backend that shall do the work.
        dataset: its training split is learned, its validation split measured after each epoch.
        optimizer: of this model.
        batch_size: the last batch of an epoch may be smaller.
        seed: of the order of the examples, and of their flips.
        flip: mirror about half of the training images of each epoch, left to right.
        lr_decay_epochs, lr_decay_factor: every so many epochs the learning rate is multiplied by
            the factor; 0 epochs: never.
        loss, sparsity, threads: as for `Engine`.

    Attributes:
        report_batches: on a GPU errors are read every `REPORT_SECONDS` and at the end of an epoch;
            also after every so many batches of an epoch if this is not 0.

    Raises:
        InputError: for a model that is no Autoencoder, sizes below 1, an empty split, or images
            that the model cannot take.
    """

    def __init__(
        self,
        model: Autoencoder,
        dataset: Dataset,
        optimizer: Optimizer,
        *,
        batch_size: int = 128,
        seed: int = 0,
        lr_decay_epochs: int = 0,
        lr_decay_factor: float = 1.0,
        flip: bool = False,
        loss: str | None = None,
        sparsity: float = 0.0,
        threads: int | None = None,
    ) -> None:
        if not isinstance(model, Autoencoder):
            raise InputError(
                "a Trainer needs to know a model's channels and range of values: make it a "
                "cae_raw.Autoencoder(*layers, encoder_length=..., channels=...)"
            )
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        for name, split in (("training", dataset.train), ("validation", dataset.validation)):
            if not len(split):
                raise InputError(f"the {name} split of {dataset.name} is empty")
        if dataset.train.image_shape[0] != model.channels:
            raise InputError(
                f"the model takes {model.channels} channels, "
                f"{dataset.name} has {dataset.train.image_shape[0]}"
            )
        self.model, self.dataset, self.optimizer = model, dataset, optimizer
        self.batch_size, self.seed, self.flip = batch_size, seed, flip
        self.base_lr = optimizer.lr
        self.lr_decay_epochs, self.lr_decay_factor = lr_decay_epochs, lr_decay_factor
        self.state = TrainState()
        self.engine = Engine(
            model, dataset.train.image_shape, loss=loss, sparsity=sparsity, threads=threads
        )
        self._feed = Feed(model.backend)
        self.report_batches = 0
        self._device_step: DeviceStep | None = None
        if not self.engine.on_cpu:
            streamed = flip or isinstance(dataset.train, LmdbSplit)
            self._device_step = DeviceStep(self.engine, optimizer, batch_size, streamed=streamed)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.dataset.train) // self.batch_size)

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if not self.lr_decay_epochs:
            return self.base_lr
        return float(self.base_lr * self.lr_decay_factor ** (epoch // self.lr_decay_epochs))

    def fit(self, epochs: int) -> list[EpochRecord]:
        """Train until `epochs` epochs are done in all; returns the record of each."""
        for _ in self.steps(epochs):
            pass
        return self.state.history

    def steps(self, epochs: int) -> Iterator[BatchDone | EpochDone]:
        """The same, step by step; whenever it yields, `state` is complete and can be saved.

        Raises:
            InputError: when the loss stops being a finite number.
        """
        with self.engine:
            while self.state.epoch < epochs:
                yield from self._train_epoch()
                yield self._end_epoch()

    def evaluate(self, split: Images) -> Figures:
        """The reconstruction error over a split, without any penalty."""
        return figures_of(self.engine, self._feed, split)

    def _train_epoch(self) -> Iterator[BatchDone]:
        state, train = self.state, self.dataset.train
        elements = prod(train.image_shape)
        self.optimizer.lr = self.lr_at(state.epoch)
        batches = self._feed.shuffled(
            train, self.seed, state.epoch, self.batch_size, start=state.batch, flip=self.flip
        )
        started = time.perf_counter()
        sizes: list[int] = []  # of the batches whose errors were not read yet
        if self._device_step is not None:
            self._device_step.errors()  # of steps after which an exception came
        for images, indices in batches:
            sizes.append(len(indices))
            if self._device_step is None:
                errors = [self._step(images, indices)]
            else:
                self._device_step(images, indices)
                if not self._is_due(state.batch + len(sizes), started):
                    continue
                errors = self._device_step.errors()
            for size, error in zip(sizes, errors, strict=True):
                half_mse = self._finite(error / (2 * size * elements))
                state.batch += 1
                state.step += 1
                state.squared_error += error
            state.seconds += time.perf_counter() - started
            yield BatchDone(sum(sizes), half_mse)
            sizes.clear()
            started = time.perf_counter()  # waiting for the next batch is part of training

    def _step(self, images: Array, indices: np.ndarray) -> float:
        """Train on a batch on the CPU; returns its sum of squared errors."""
        total = self.engine.step(images, indices)
        with np.errstate(over="ignore", invalid="ignore"):  # `_finite` tells it better
            self.optimizer.step(self.engine.gradients, self.engine.in_order)
        return float(total[0])

    def _is_due(self, batch: int, started: float) -> bool:
        """Whether a GPU's errors are read now that so many batches of the epoch are done."""
        return (
            batch == self.batches_per_epoch
            or bool(self.report_batches and batch % self.report_batches == 0)
            or time.perf_counter() - started >= REPORT_SECONDS
            or (self._device_step is not None and self._device_step.full)
        )

    def _end_epoch(self) -> EpochDone:
        state, train = self.state, self.dataset.train
        started = time.perf_counter()
        validation = self._finite(self.evaluate(self.dataset.validation).half_mse)
        training_seconds = state.seconds
        record = EpochRecord(
            epoch=state.epoch + 1,
            step=state.step,
            seconds=training_seconds + time.perf_counter() - started,
            images_per_second=len(train) / max(training_seconds, 1e-9),
            train_half_mse=state.squared_error / (2 * len(train) * prod(train.image_shape)),
            validation_half_mse=validation,
            lr=self.optimizer.lr,
        )
        is_best = state.best is None or validation < state.best
        if is_best:
            state.best, state.best_epoch = validation, record.epoch
        state.history.append(record)
        state.epoch, state.batch = record.epoch, 0
        state.squared_error = state.seconds = 0.0
        return EpochDone(record, is_best)

    def _finite(self, half_mse: float) -> float:
        """The error, if it is a number to go on with."""
        if not isfinite(half_mse):
            raise InputError(
                f"training diverged: half_mse is {half_mse} in epoch {self.state.epoch + 1} after "
                f"step {self.state.step}; try a smaller --lr than {self.optimizer.lr:g}"
            )
        return half_mse


def figures_of(engine: Engine, feed: Feed, split: Images) -> Figures:
    """The reconstruction error of the engine's model over a split, without any penalty.

    Raises:
        InputError: if the split is empty.
    """
    if not len(split):
        raise InputError("the split is empty: there is nothing to measure")
    with engine:
        total = sum(engine.squared_error(images) for images in feed.in_order(split))
    elements = len(split) * prod(split.image_shape)
    return Figures.from_squared_error(total, elements, engine.model.value_range)
