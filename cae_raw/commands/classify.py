"""`cae-raw classify`: the decoder removed, a linear layer on the codes trained and measured."""

from __future__ import annotations

import sys
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cae_raw.backends import choose_backend
from cae_raw.classify import Classifier, TrainingOptions, labelled_splits, train_classifier
from cae_raw.classify.classifier import GRID
from cae_raw.classify.store import make_folder, save_classifier
from cae_raw.classify.training import EpochRecord, Trained
from cae_raw.codes_file import model_facts
from cae_raw.commands.data import Announcer, cache_near
from cae_raw.commands.model_choice import choose_model, likely_channels
from cae_raw.commands.options import LARGEST, check_threads
from cae_raw.commands.shell import one_line
from cae_raw.commands.split_choice import check_split_options, choose_dataset
from cae_raw.errors import InputError
from cae_raw.models import build
from cae_raw.training.checkpoint import Checkpoint

LARGEST_GRID = 1024
EPOCHS, FINE_TUNE_EPOCHS = 20, 5


def classify(
    *,
    dataset: str | None,
    data_dir: Path | None,
    size: int | None,
    run: Path | None,
    checkpoint: Path | None,
    runs_dir: Path,
    epochs: int | None,
    lr: float,
    batch_size: int,
    l2_penalty: float,
    seed: int,
    limit_train: int | None,
    pool: int | None,
    fine_tune: bool,
    random_encoder: bool,
    out: Path | None,
    device: str,
    threads: int | None,
    say: TextIO,
) -> dict[str, Any]:
    """Train and measure a classifier, telling `say`; returns a report for JSON."""
    check_threads(threads)
    check_split_options(dataset, "test", size)
    options = _options(epochs, lr, batch_size, l2_penalty, seed, fine_tune)
    _require("--limit-train", limit_train, 1, LARGEST["limit_train"])
    _require("--pool", pool, 0, LARGEST_GRID)
    backend = choose_backend(device)
    source, name = choose_model(
        run, checkpoint, runs_dir, lambda: likely_channels((), dataset, data_dir)
    )
    model = source.build_model()
    if pool is not None and model.image_size is not None:
        raise InputError(f"the code of the model {model.name} is a vector already: omit --pool")
    if random_encoder:
        model = build(model.name, np.random.default_rng(seed), **model.options)
        name = f"{model.name} with random weights, of the shape of {name}"
    near = cache_near(runs_dir, run, checkpoint)
    chosen, _ = choose_dataset(
        dataset, data_dir, size, source, model, sys.stderr, near, all_classes=True
    )
    kind = "-random" * random_encoder + "-fine-tuned" * fine_tune
    folder = out or _home(source) / f"classifier-{chosen.name}{kind}"
    make_folder(folder)
    announcer = Announcer(sys.stderr)
    splits = labelled_splits(chosen, model, limit_train, announcer.tell)
    facts = model_facts(model)
    classifier = Classifier(
        model, splits.image_shape, splits.classes, GRID if pool is None else pool
    )
    classifier.to(backend)
    _describe(name, chosen.name, classifier, splits, backend.name, say)
    trained = train_classifier(
        classifier,
        splits,
        options,
        threads=threads,
        tell=announcer.tell,
        on_epoch=lambda record: _tell_epoch(record, options, say),
    )
    config = {
        "model": name,
        "encoder": facts,
        "dataset": chosen.name,
        "limit_train": limit_train,
        "random_encoder": random_encoder,
        "images": {p: len(getattr(splits, p)) for p in ("train", "validation", "test")},
        **asdict(options),
    }
    save_classifier(folder, classifier, config, trained)
    _tell_results(trained, folder, say)
    return {
        **config,
        "out": str(folder),
        "features": classifier.features,
        "best": trained.best.to_json(),
        "validation_accuracy": trained.validation.accuracy,
        "test": trained.test.to_json(),
        "history": [record.to_json() for record in trained.history],
        "notes": list(splits.notes),
    }


def _options(
    epochs: int | None, lr: float, batch_size: int, l2_penalty: float, seed: int, fine_tune: bool
) -> TrainingOptions:
    _require("--epochs", epochs, 1, LARGEST["epochs"])
    _require("--batch-size", batch_size, 1, LARGEST["batch_size"])
    _require("--seed", seed, 0, LARGEST["seed"])
    if not 0 < lr < inf:
        raise InputError(f"--lr must be above 0 and finite, not {lr}")
    if not 0 <= l2_penalty < inf:
        raise InputError(f"--l2-penalty must be at least 0, not {l2_penalty}")
    if not fine_tune:
        return TrainingOptions(epochs or EPOCHS, lr, 0, lr, batch_size, l2_penalty, seed)
    stages = (EPOCHS, 1e-3, epochs or FINE_TUNE_EPOCHS, lr)
    return TrainingOptions(*stages, batch_size, l2_penalty, seed)


def _require(option: str, value: int | None, low: int, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{option} must be from {low} to {high}, not {str(value)[:30]}")


def _home(source: Checkpoint) -> Path:
    """Beside the run's files; in the working directory for a model that ships with the package."""
    packaged = Path(__file__).resolve().parent.parent
    if source.path is None or packaged in source.path.resolve().parents:
        return Path()
    return source.path.parent


def _describe(
    name: str, dataset: str, classifier: Classifier, splits: Any, device: str, say: TextIO
) -> None:
    c, h, w = classifier.image_shape
    print(f"model: {name}", file=say)
    print(
        f"{dataset}: {len(splits.train):,} training images of {c}x{h}x{w}, "
        f"{len(splits.validation):,} validation, {len(splits.test):,} test; "
        f"{len(splits.classes)} classes; on {device}",
        file=say,
    )
    for note in splits.notes:
        print(note, file=say)
    print(f"features: {classifier.features:,} of each image, {_pooled(classifier)}", file=say)
    say.flush()


def _pooled(classifier: Classifier) -> str:
    shapes = classifier.layer_shapes(classifier.image_shape)
    maps = [shape for shape in shapes if len(shape) == 3]
    if len(shapes[classifier.head - 1]) == 3:  # a Flatten right before the linear layer
        return f"the maxima of {maps[-1][0]} maps over {maps[-1][1]}x{maps[-1][2]} windows"
    return "the code"


def _tell_epoch(record: EpochRecord, options: TrainingOptions, say: TextIO) -> None:
    tuning = record.stage == "all layers"
    total = options.fine_tune_epochs if tuning else options.epochs
    left = (total - record.epoch) * record.seconds
    print(
        f"{record.stage}, epoch {record.epoch}/{total}: loss {record.loss:.4f}, validation "
        f"accuracy {record.validation_accuracy:.2%}, {record.seconds:.1f} s"
        + (f", {left:.0f} s left" if record.epoch < total and left >= 1 else ""),
        file=say,
        flush=True,
    )


def _tell_results(trained: Trained, folder: Path, say: TextIO) -> None:
    best, test = trained.best, trained.test
    print(
        f"kept: {best.stage}, epoch {best.epoch}, validation accuracy "
        f"{trained.validation.accuracy:.2%}",
        file=say,
    )
    print(f"test accuracy {test.accuracy:.2%} of {test.images:,} images", file=say)
    for name, share in zip(test.classes, test.per_class, strict=True):
        words = "no images" if share is None else f"{share:.2%}"
        print(f"  {one_line(name):16} {words}", file=say)
    for name, taken, count in test.worst_mistakes():
        print(f"  {count:,} times {one_line(name)} was taken for {one_line(taken)}", file=say)
    print(f"in {one_line(folder)}: classifier.safetensors, results.json, confusion.png, "
          "confusion.csv", file=say)  # fmt: skip
