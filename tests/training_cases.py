"""Small things to train on, and ways to look at what a training left."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.backends import Backend
from cae_raw.data import Dataset, Split
from cae_raw.layers import (
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    MaxUnpool2d,
    ReLU,
    Tanh,
    Unflatten,
)
from cae_raw.models import Autoencoder
from cae_raw.training import checkpoint
from cae_raw.training.config import TrainConfig
from cae_raw.training.engine import Engine
from cae_raw.training.trainer import BatchDone, EpochDone, Trainer

TIME_COLUMNS = ("seconds", "images_per_second")


def make_images(n: int, shape: tuple[int, int, int] = (1, 6, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def make_dataset(
    train: int = 37,
    validation: int = 11,
    test: int = 7,
    shape: tuple[int, int, int] = (1, 6, 5),
    seed: int = 0,
) -> Dataset:
    """Three splits of random images."""
    counts = (train, validation, test)
    splits = (Split(make_images(n, shape, 10 * seed + i), None) for i, n in enumerate(counts))
    return Dataset("tiny", *splits)


def pooling_model(rng: np.random.Generator) -> Autoencoder:
    """Pooling, unpooling and linear layers; for images (1, 6, 4)."""
    pool = MaxPool2d(2)
    return Autoencoder(
        Conv2d(1, 3, 3, padding=1, rng=rng),
        ReLU(),
        pool,
        Flatten(),
        Linear(18, 7, rng=rng),
        Tanh(),
        Linear(7, 18, rng=rng),
        Unflatten((3, 3, 2)),
        MaxUnpool2d(pool),
        Conv2d(3, 1, 3, padding=1, rng=rng),
        encoder_length=5,
        channels=1,
        loss="mse",
        penalised=(("0.weight", "4.weight"), ("9.weight",)),
    )


def losses(
    backend: Backend, config: TrainConfig, images: np.ndarray, steps: int, batch: int = 8
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """The loss of each step, the gradients of the first, and the final parameters."""
    model = config.make_model(images.shape[1:]).to(backend)
    optimizer = config.make_optimizer(model)
    rng = np.random.default_rng(3)
    found: list[float] = []
    first = np.empty(0)
    with Engine(model, images.shape[1:], sparsity=config.sparsity) as engine:
        placed = backend.asarray(images)
        for _ in range(steps):
            total = engine.step(placed, rng.permutation(len(images))[:batch])
            if not found:
                first = backend.to_numpy(engine.gradients).copy()
            optimizer.step(engine.gradients)
            found.append(float(backend.to_numpy(total)[0]))
    return found, first, backend.to_numpy(model.parameters).copy()


def assert_gradients_agree(model: Autoencoder, found: np.ndarray, true: np.ndarray) -> None:
    """Those of each parameter, within 1e-5 of the largest of them."""
    theirs = model.split(found)
    for name, part in model.split(true).items():
        largest = np.abs(part).max()
        assert largest > 0, name
        np.testing.assert_allclose(theirs[name], part, atol=1e-5 * largest, err_msg=name)


class Listener:
    """A reporter that calls `hear(position, done)` after each batch and each epoch.

    The position counts what it heard, from 1.
    """

    def __init__(
        self, hear: Callable[[int, BatchDone | EpochDone], None] = lambda *_: None
    ) -> None:
        self.hear, self.position, self.open = hear, 0, False

    def begin(self, trainer: Trainer, epochs: int) -> None:
        self.open = True

    def batch(self, done: BatchDone) -> None:
        self.position += 1
        self.hear(self.position, done)

    def epoch(self, done: EpochDone) -> None:
        self.position += 1
        self.hear(self.position, done)

    def end(self) -> None:
        self.open = False


def checkpoint_contents(path: Path) -> dict[str, Any]:
    """All of a checkpoint that must not depend on when and how fast it was made, comparable."""
    saved = checkpoint.load(path)
    state = {**saved.state, "seconds": None}
    state["history"] = [
        {k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in state["history"]
    ]
    return {
        "parameters": {k: (v.shape, v.tobytes()) for k, v in saved.parameters.items()},
        "optimizer": {k: (v.shape, v.tobytes()) for k, v in saved.optimizer.items()},
        "state": state,
    }


def metrics_without_times(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in rows]


def run_contents(folder: Path) -> dict[str, Any]:
    """What two runs must share that were trained alike, in one go or in many."""
    return {
        "last": checkpoint_contents(folder / "last.safetensors"),
        "best": checkpoint_contents(folder / "best.safetensors"),
        "metrics": metrics_without_times(folder / "metrics.csv"),
        "picture": (folder / "reconstructions.png").read_bytes(),
        "results": [
            (folder / f"{split}_results.txt").read_text() for split in ("validation", "test")
        ],
    }


def events_of(folder: Path) -> list[tuple[Any, ...]]:
    """The values in a run's event files that must not depend on when they were written, in order.

    (folder, step, tag, value): of a scalar the number, else the message's bytes.
    """
    from cae_raw.training.event_file import PATTERN, _parsed, _records

    found = []
    for part in ("train", "validation"):
        for path in sorted((folder / part).glob(PATTERN)):
            data = path.read_bytes()
            records = list(_records(data))
            assert sum(map(len, records)) == len(data), f"{path} ends in half a record"
            for event in map(_parsed, records):
                for value in event.summary.value:
                    if value.tag == "images_per_second":
                        continue
                    kind = value.WhichOneof("value")
                    shown = getattr(value, kind)
                    if kind == "simple_value":
                        found.append((part, event.step, value.tag, shown))
                    else:
                        found.append((part, event.step, value.tag, shown.SerializeToString()))
    return found


def write_image_folder(folder: Path, n: int = 60, size: int = 8) -> None:
    """n PNG files for the data set `folder`: it starts faster than the drawn one."""
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(make_images(n, (3, size, size), seed=5)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:03}.png")


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cae_raw", *map(str, arguments)]


def run_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command_line(*arguments), capture_output=True, text=True, timeout=120, cwd=cwd
    )
