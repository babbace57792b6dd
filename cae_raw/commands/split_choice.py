"""Which images of a data set a command uses: of the one that is named, or of the run's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TextIO

from cae_raw.commands.data import load_data
from cae_raw.commands.options import LARGEST
from cae_raw.data import DATASETS
from cae_raw.data.access import SPLITS
from cae_raw.data.base import Dataset
from cae_raw.errors import InputError, unknown_name
from cae_raw.models import Autoencoder
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.config import TrainConfig


def check_split_options(dataset: str | None, split: str, size: int | None) -> None:
    """Raise InputError for what is out of range; before any model or data set is loaded."""
    if dataset is not None and dataset not in DATASETS:
        raise unknown_name("data set", dataset, DATASETS)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    check_size(size)


def check_size(size: int | None) -> None:
    """Raise InputError unless images can be made this size."""
    if size is not None and not 1 <= size <= LARGEST["size"]:
        raise InputError(f"--size must be from 1 to {LARGEST['size']}, not {str(size)[:30]}")


def trained_classes(name: str, checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Those classes of the data set of this name that a run was trained on; None: all."""
    own = TrainConfig.from_json(checkpoint.config["train"])
    return own.classes if name == own.dataset else None


def choose_dataset(
    name: str | None,
    data_dir: Path | None,
    size: int | None,
    checkpoint: Checkpoint,
    model: Autoencoder,
    out: TextIO,
    cache_dir: Path | None,
    *,
    all_classes: bool = False,
) -> tuple[Dataset, Path | None]:
    """The data set of this name; None, or the run's own name, takes it as the run had it.

    A run that was trained on some classes gets the images of these, and `out` says so; with
    `all_classes` it gets all images.
    For `folder`, the images' size is that of the model where it has one and none is given; the
    folder that the images lie in comes second, None for other data sets. Records of `lmdb` are
    resized to `size` where that is given.
    """
    own = TrainConfig.from_json(checkpoint.config["train"])
    if name is None or name == own.dataset:
        classes = None if all_classes else own.classes
        config = replace(own, limit_train=None, size=size or own.size, classes=classes)
    else:
        config = TrainConfig(dataset=name, size=size)
    if size is not None and config.dataset not in ("folder", "lmdb"):
        raise InputError(
            "--size needs --dataset folder or lmdb to have an effect: add one of them, or omit it"
        )
    if size is not None and config.dataset == "lmdb":
        config = replace(config, resize=True)
    square = model.image_size is not None and len(set(model.image_size)) == 1
    if config.dataset == "folder" and config.size is None and square:
        assert model.image_size is not None
        config = replace(config, size=model.image_size[0])
    folder = data_dir or (Path(config.data_dir) if config.data_dir else None)
    dataset = load_data(config, data_dir, out, cache_dir)
    if config.classes is not None:
        print(f"only the classes {', '.join(config.classes)}, as in training", file=out, flush=True)
    return dataset, folder if config.dataset == "folder" else None
