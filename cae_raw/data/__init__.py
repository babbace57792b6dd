"""The data sets by name; `load_dataset("shapes")` needs no files."""

from __future__ import annotations

from collections.abc import Callable

from cae_raw.data.base import DataOptions, Dataset, Progress, Split
from cae_raw.data.cifar import load_cifar10
from cae_raw.data.folder import load_folder
from cae_raw.data.lmdb_set import load_lmdb
from cae_raw.data.local import cache_dir
from cae_raw.data.mnist import load_mnist
from cae_raw.data.order import epoch_order
from cae_raw.data.shapes import load_shapes
from cae_raw.errors import unknown_name

__all__ = [
    "DATASETS",
    "DataOptions",
    "Dataset",
    "Progress",
    "Split",
    "cache_dir",
    "epoch_order",
    "load_dataset",
]

DATASETS: dict[str, Callable[[DataOptions], Dataset]] = {
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "shapes": load_shapes,
    "folder": load_folder,
    "lmdb": load_lmdb,
}


def load_dataset(name: str, options: DataOptions | None = None) -> Dataset:
    """Load the data set of this name. Raises InputError when that cannot be done."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name](options or DataOptions())
