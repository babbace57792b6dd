"""MNIST: 28 x 28 gray digits in IDX files, as published by LeCun, Cortes and Burges."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.base import DataOptions, Dataset, Progress, Split
from cae_raw.data.download import Remote, locate
from cae_raw.data.local import REPLACE_IT, looks_like, read_file, search_roots
from cae_raw.errors import InputError

COUNTS = {"train": 60_000, "t10k": 10_000}
VALIDATION = 5_000  # the first ones of the training file, as in TensorFlow's read_data_sets
SIDE = 28
CLASSES = 10
SUBFOLDERS = ("mnist", "MNIST/raw")  # the latter is where torchvision keeps them

_SOURCES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_PUBLISHED = {
    "train-images-idx3-ubyte.gz": (
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte.gz": (
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte.gz": (
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}
REMOTES = {
    name: Remote(name, size, f"sha256:{digest}", tuple(source + name for source in _SOURCES))
    for name, (size, digest) in _PUBLISHED.items()
}


def load_mnist(options: DataOptions) -> Dataset:
    """55,000 training, 5,000 validation and 10,000 test images, each (1, 28, 28).

    The files are looked for in data_dir, data_dir/mnist, data_dir/MNIST/raw and the cache, then
    downloaded. Raises InputError.
    """
    roots = search_roots(options.data_dir, SUBFOLDERS, "mnist")
    images, labels = _load_part("train", roots, options.progress)
    train = Split(images[VALIDATION:], labels[VALIDATION:])
    validation = Split(images[:VALIDATION], labels[:VALIDATION])
    test = Split(*_load_part("t10k", roots, options.progress))
    return Dataset("mnist", train, validation, test, tuple("0123456789"))


def _load_part(
    part: str, roots: tuple[Path, ...], progress: Progress | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    n = COUNTS[part]
    path = _locate(f"{part}-images-idx3-ubyte", roots, progress)
    images = read_idx(path, (n, SIDE, SIDE))
    path = _locate(f"{part}-labels-idx1-ubyte", roots, progress)
    labels = read_idx(path, (n,))
    if labels.max() >= CLASSES:
        raise InputError(
            f"{path} holds the label {labels.max()}, but MNIST has 0 to 9: {REPLACE_IT}"
        )
    return images.reshape(n, 1, SIDE, SIDE), labels.astype(np.int64)


def _locate(name: str, roots: tuple[Path, ...], progress: Progress | None) -> Path:
    dotted = name.replace("-idx", ".idx")  # the name stored in the published gzip headers
    names = (name, dotted, f"{name}.gz", f"{dotted}.gz")
    return locate(roots, names, REMOTES[f"{name}.gz"], progress)


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The uint8 array of exactly this shape in an IDX file, gzipped or not; or InputError."""
    limit = 4 + 4 * len(shape) + math.prod(shape)
    return parse_idx(read_file(path, limit), shape, str(path))


def parse_idx(data: bytes, shape: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """The read-only uint8 array of exactly this shape in the bytes of an IDX file.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each
    dimension as 4 bytes, then the values; all big-endian. Raises InputError.
    """
    magic = bytes((0, 0, 8, len(shape)))
    header = 4 + 4 * len(shape)
    if data[:4] != magic:
        raise InputError(
            f"{where} is no IDX file of {len(shape)}-dimensional bytes{looks_like(data)}: "
            f"it begins with {data[:4].hex() or 'nothing'} instead of {magic.hex()}; {REPLACE_IT}"
        )
    if len(data) < header:
        raise InputError(f"{where} ends inside its header: {REPLACE_IT}")
    stated = struct.unpack(f">{len(shape)}I", data[4:header])
    if stated != shape:
        raise InputError(f"{where} states the shape {stated} instead of {shape}: {REPLACE_IT}")
    size, expected = len(data) - header, math.prod(shape)
    if size != expected:
        problem = "goes on beyond" if size > expected else f"ends after {size} of"
        raise InputError(f"{where} {problem} its {expected} values: {REPLACE_IT}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
