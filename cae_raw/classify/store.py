"""A classifier's folder: its weights, how it was made, what it gets right.

classifier.safetensors   encoder and linear layer, with a checksum
results.json             accuracies, the confusion matrix, every epoch, and the configuration
confusion.csv, .png      the confusion matrix of the test images
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.classify.classifier import Classifier
from cae_raw.classify.training import Trained
from cae_raw.errors import InputError
from cae_raw.files import atomic_write, remove_leftovers
from cae_raw.models import build
from cae_raw.pictures.confusion import confusion_png
from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint

WEIGHTS = "classifier.safetensors"


def make_folder(folder: Path) -> None:
    """Make the folder, so that training does not begin where nothing can be written.

    Raises:
        InputError: if it cannot be made, or not written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    remove_leftovers(folder)
    probe = folder / ".writable"
    atomic_write(probe, b"")
    probe.unlink()


def save_classifier(
    folder: Path, classifier: Classifier, config: dict[str, Any], trained: Trained
) -> None:
    """Write all files, each of them atomically; `config` tells how the classifier was made."""
    facts = {
        "encoder": classifier.encoder,
        "image_shape": list(classifier.image_shape),
        "classes": list(classifier.classes),
        "grid": classifier.grid,
    }
    host = classifier.split(classifier.backend.to_numpy(classifier.parameters))
    state = {"best": trained.best.to_json(), "test_accuracy": trained.test.accuracy}
    checkpoint.save(
        folder / WEIGHTS, Checkpoint(host, {}, {"classifier": facts, "config": config}, state)
    )
    report = {
        "config": config,
        "classifier": facts,
        "best": trained.best.to_json(),
        "validation": trained.validation.to_json(),
        "test": trained.test.to_json(),
        "history": [record.to_json() for record in trained.history],
    }
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    atomic_write(folder / "results.json", text.encode())
    atomic_write(
        folder / "confusion.csv", trained.test.to_csv().encode("utf-8", "backslashreplace")
    )
    title = f"test accuracy {trained.test.accuracy:.2%} of {trained.test.images:,} images"
    picture = confusion_png(trained.test.confusion, trained.test.classes, title)
    atomic_write(folder / "confusion.png", picture)


def load_classifier(path: Path) -> Classifier:
    """The classifier in a folder or file that `save_classifier` wrote, on the CPU.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    saved = checkpoint.load(path / WEIGHTS if path.is_dir() else path)
    facts = saved.config.get("classifier")
    if facts is None:
        raise InputError(f"{path} holds no classifier: make one with `cae-raw classify`")
    options = dict(facts["encoder"])
    model = build(options.pop("name"), **options)
    c, h, w = facts["image_shape"]
    classifier = Classifier(model, (c, h, w), tuple(facts["classes"]), facts["grid"])
    shapes = dict(zip(classifier.names, classifier.shapes, strict=True))
    if shapes != {name: value.shape for name, value in saved.parameters.items()}:
        raise InputError(f"{path}: the weights do not fit the classifier it names")
    flat = np.concatenate([saved.parameters[name].ravel() for name in classifier.names])
    classifier.load_parameters(flat)
    return classifier
