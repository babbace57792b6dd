"""Small deep models, in checkpoints as a training leaves them, for tests that use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cae_raw.models import Autoencoder, build
from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.config import TrainConfig

SIZE, CODE = (14, 12), 8  # neither square nor a power of two


def small_deep(
    name: str = "deep", channels: int = 3, size: tuple[int, int] = SIZE, seed: int = 0
) -> Autoencoder:
    return build(name, np.random.default_rng(seed), channels=channels, size=size, code_size=CODE)


def save_model(path: Path, model: Autoencoder, dataset: str = "shapes") -> Path:
    """Write the model as the best checkpoint of a run on a data set."""
    config = {
        "train": TrainConfig(dataset=dataset).to_json(),
        "model": {"name": model.name, **model.options},
        "data": {},
    }
    parameters = model.split(model.parameters)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, Checkpoint(parameters, {}, config, {"best_epoch": 1}))
    return path


def random_images(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    """uint8 (n, *shape)."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)
