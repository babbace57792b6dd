"""Training a classifier: the linear layer on fixed codes, then, if asked, the encoder with it.

First the codes of all images are computed once and standardised, and the linear layer alone is
trained on them: minutes become seconds, because the encoder does not run again in every epoch.
Standardising means that every feature has mean 0 and a variance of about 1 over the training
images; Adam's steps then suit all of them alike. The scaling is folded into the layer's weights at
the end, so the classifier has no part for it.

Fine-tuning begins there: from the trained encoder and the linear layer that suits it, rather than
from one whose first gradients would spoil the encoder.

The epoch with the highest accuracy on the validation images is kept; of equals the one with the
lowest loss on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from cae_raw.backends import NUMPY
from cae_raw.classify.classifier import Classifier
from cae_raw.classify.engine import ClassifierEngine, Load
from cae_raw.classify.examples import LARGEST, Labelled, Splits, Tell
from cae_raw.classify.results import Results
from cae_raw.data.order import epoch_order
from cae_raw.errors import InputError
from cae_raw.layers import Linear, Sequential
from cae_raw.models.inference import scaled
from cae_raw.parallel import Parallel
from cae_raw.training.optimizers import Adam

# Added to each feature's variance, as a share of the mean variance: a feature that hardly ever
# changes is not blown up to the size of the others.
LEAST_VARIANCE = 0.01


@dataclass(frozen=True)
class TrainingOptions:
    """epochs, lr: of the linear layer; fine_tune_epochs (0: none), fine_tune_lr: of all layers."""

    epochs: int = 20
    lr: float = 1e-3
    fine_tune_epochs: int = 0
    fine_tune_lr: float = 1e-3
    batch_size: int = 128
    l2_penalty: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch achieved."""

    stage: str  # "linear layer" or "all layers"
    epoch: int  # from 1 in each stage
    loss: float  # mean cross-entropy while the weights move
    validation_loss: float  # after the epoch
    validation_accuracy: float
    seconds: float

    def better_than(self, other: EpochRecord) -> bool:
        """By validation accuracy, and where that is equal by validation loss."""
        mine = (self.validation_accuracy, -self.validation_loss)
        return mine > (other.validation_accuracy, -other.validation_loss)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """How a training went: all epochs, the one that was kept, and the test results."""

    history: list[EpochRecord]
    best: EpochRecord
    validation: Results
    test: Results


def train_classifier(
    classifier: Classifier,
    splits: Splits,
    options: TrainingOptions,
    *,
    threads: int | None = None,
    tell: Tell = lambda *_: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> Trained:
    """Train `classifier`, on whatever backend it is, and measure it.

    Args:
        threads: workers on the CPU; the result does not depend on it.
        tell: hears how far a slow step is.
        on_epoch: hears of each epoch that is done.

    Raises:
        InputError: if the features need too much memory, or the loss stops being a number.
    """
    history: list[EpochRecord] = []

    def done(record: EpochRecord) -> None:
        history.append(record)
        on_epoch(record)

    with Parallel(classifier.backend, threads) as workers:
        engine = ClassifierEngine(classifier, splits.image_shape, workers)
        best = _train_linear(classifier, engine, splits, options, workers, tell, done)
        if options.fine_tune_epochs:
            stage = _Stage("all layers", options.fine_tune_epochs, options.fine_tune_lr)
            train, validation = (_images(classifier, s) for s in (splits.train, splits.validation))
            tuned = _train(
                engine, (train, splits.train.labels), (validation, splits.validation.labels),
                stage, options, tell, done, before=best,
            )  # fmt: skip
            best = tuned
        measured = [
            Results.of(
                engine.outputs(_images(classifier, split), len(split)),
                split.labels,
                classifier.classes,
            )
            for split in (splits.validation, splits.test)
        ]
    return Trained(history, best, *measured)


@dataclass(frozen=True)
class _Stage:
    name: str
    epochs: int
    lr: float


def _images(classifier: Classifier, split: Labelled) -> Load:
    backend, value_range = classifier.backend, classifier.value_range
    return lambda indices: scaled(backend, split.images[indices], value_range)


def _train_linear(
    classifier: Classifier,
    engine: ClassifierEngine,
    splits: Splits,
    options: TrainingOptions,
    workers: Parallel,
    tell: Tell,
    done: Callable[[EpochRecord], None],
) -> EpochRecord:
    """Train the linear layer on standardised features, and put it into the classifier."""
    count = len(splits.train) + len(splits.validation)
    needed = 4 * count * classifier.features
    if needed > LARGEST:
        raise InputError(
            f"{classifier.features:,} features of {count:,} images take {needed / 2**30:.1f} GiB "
            f"of memory, more than {LARGEST / 2**30:.0f}: use --limit-train or a smaller --pool"
        )
    train, validation = (
        _features(classifier, engine, split, f"codes of {name} images", tell)
        for name, split in (("training", splits.train), ("validation", splits.validation))
    )
    mean, deviation = _moments(train)
    for features in (train, validation):
        features -= mean
        features /= deviation
    layer = Linear(classifier.features, len(classifier.classes), rng=np.random.default_rng(0))
    for values in layer.params.values():
        values[...] = 0
    stack = Sequential(layer).to(classifier.backend)
    alone = ClassifierEngine(stack, (classifier.features,), workers)

    def loader(features: np.ndarray) -> Load:
        return lambda indices: stack.backend.asarray(features[indices])

    best = _train(
        alone,
        (loader(train), splits.train.labels),
        (loader(validation), splits.validation.labels),
        _Stage("linear layer", options.epochs, options.lr),
        options,
        tell,
        done,
    )
    found = stack.split(stack.backend.to_numpy(stack.parameters))
    weight = found["0.weight"].astype(np.float64) / deviation
    classifier.set_linear(weight, found["0.bias"] - weight @ mean.astype(np.float64))
    return best


def _features(
    classifier: Classifier, engine: ClassifierEngine, split: Labelled, what: str, tell: Tell
) -> np.ndarray:
    """What the linear layer gets, float32 (N, D)."""
    features = np.empty((len(split), classifier.features), np.float32)
    step = 32 * engine.chunk
    for start in range(0, len(split), step):
        stop = min(start + step, len(split))
        part = split.part(start, stop)
        load = _images(classifier, part)
        features[start:stop] = engine.outputs(load, len(part), classifier.head)
        tell(what, stop, len(split))
    if not np.isfinite(features).all():
        raise InputError(
            "the encoder gives codes that are not finite numbers: did its training diverge?"
        )
    return features


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) of the columns, no deviation near 0; in float64 sums."""
    mean = features.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(features), 4096):
        part = features[start : start + 4096] - mean
        squares += np.einsum("nd,nd->d", part, part)
    variance = squares / len(features)
    floor = LEAST_VARIANCE * variance.mean()
    deviation = np.sqrt(variance + floor) if floor > 0 else np.ones_like(mean)
    return mean.astype(np.float32), deviation.astype(np.float32)


def _train(
    engine: ClassifierEngine,
    train: tuple[Load, np.ndarray],
    validation: tuple[Load, np.ndarray],
    stage: _Stage,
    options: TrainingOptions,
    tell: Tell,
    done: Callable[[EpochRecord], None],
    before: EpochRecord | None = None,
) -> EpochRecord:
    """Run the epochs of a stage and leave the best parameters in the stack.

    `before`, if any, describes the parameters at the start: they stay where no epoch is better.
    """
    stack = engine.stack
    penalised = {name: options.l2_penalty for name in stack.names if name.endswith(".weight")}
    optimizer = Adam(stack, stage.lr, l2=penalised)
    (load, labels), (load_validation, true) = train, validation
    best, kept = before, stack.backend.to_numpy(stack.parameters).copy()
    for epoch in range(stage.epochs):
        started, total = time.perf_counter(), 0.0
        order = epoch_order(len(labels), options.seed, epoch)
        for start in range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            loss = engine.step(load, labels, batch)
            if not isfinite(loss):
                raise InputError(
                    f"training diverged: the loss is {loss} in epoch {epoch + 1}; try a smaller "
                    f"--lr than {stage.lr:g}"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # the next loss tells it better
                optimizer.step(engine.gradients, _in_order(engine))
            total += loss * len(batch)
            tell(
                f"{stage.name}, epoch {epoch + 1} of {stage.epochs}",
                start + len(batch),
                len(order),
            )
        logits = engine.outputs(load_validation, len(true))
        record = EpochRecord(
            stage.name,
            epoch + 1,
            total / len(order),
            engine.loss(logits, true)[0],
            float(np.mean(logits.argmax(axis=1) == true)),
            time.perf_counter() - started,
        )
        if best is None or record.better_than(best):
            best, kept = record, stack.backend.to_numpy(stack.parameters).copy()
        done(record)
    stack.load_parameters(kept)
    assert best is not None, "a stage has at least one epoch"
    return best


def _in_order(engine: ClassifierEngine) -> Any:
    return engine.workers.map if engine.stack.backend is NUMPY else map
