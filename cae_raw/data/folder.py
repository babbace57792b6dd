"""A directory of images as a data set, split by a seeded hash of each file's relative path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.base import DataOptions, Dataset, Progress, Split
from cae_raw.data.image_file import EXTENSIONS, load_square, quiet_pillow
from cae_raw.data.local import require_folder
from cae_raw.errors import InputError

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1  # the rest is the test set
MAX_NAMED = 3  # broken files named in the note


class Found(NamedTuple):
    """The image files below a folder, in the order of their hash positions.

    names: relative paths. positions: in [0, 1), ascending. classes: the first-level sub-folders
    if all images lie in one, and labels, int64, the numbers of theirs; else none and None.
    channels, size: what the images become.
    """

    root: Path
    names: list[str]
    positions: list[float]
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    channels: int
    size: int


def load_folder(options: DataOptions) -> Dataset:
    """The images below data_dir, (channels, size, size) each, in three splits of 80:10:10.

    A file's split depends on the seed and its relative path only, so that adding files moves none
    (except for so few images that a split would be empty: then the hash order is cut at those
    shares, one image per split at least). Splits are in hash order too: their first n images are
    a random sample. Labels are the first-level sub-folders, when all images lie in sub-folders.
    Files that cannot be decoded are left out and named in `notes`. Raises InputError.

    With `cache_dir` the images are decoded once, into a database there from which they are then
    read as they are needed; without it they are decoded into memory.
    """
    found = _find(options)
    if options.cache_dir is not None:
        from cae_raw.data.folder_cache import load_cached

        return load_cached(found, options.cache_dir, options.seed, options.progress)
    images, broken = _decode_all(found, options.progress)
    kept = np.array([name not in broken for name in found.names])
    a, b = split_kept(found, kept)
    names = tuple(compress(found.names, kept))
    labels = None if found.labels is None else found.labels[kept]

    def part(start: int, stop: int | None) -> Split:
        cut = slice(start, stop)
        part_labels = None if labels is None else labels[cut]
        return Split(images[cut], part_labels, names[cut], in_blocks=True)

    return Dataset(
        "folder",
        part(0, a),
        part(a, b),
        part(b, None),
        found.classes,
        left_out(list(broken)),
    )


def _find(options: DataOptions) -> Found:
    if options.data_dir is None:
        raise InputError("the data set folder needs --data-dir, a directory of images")
    if options.size is None or options.size < 1:
        raise InputError("the data set folder needs --size, the side of its images in pixels")
    channels = 3 if options.channels is None else options.channels
    if channels not in (1, 3):
        raise InputError(f"images have 1 or 3 channels here, not {channels}")
    root = options.data_dir
    require_folder(root, "--data-dir")
    found = sorted(
        (hash_position(name, options.seed), name) for name in list_images(root, options.progress)
    )
    if not found:
        raise InputError(f"no images below {root}: looked for files {' '.join(sorted(EXTENSIONS))}")
    names = [name for _, name in found]
    classes, labels = first_level_labels(names)
    return Found(root, names, [p for p, _ in found], classes, labels, channels, options.size)


def split_kept(found: Found, kept: NDArray[np.bool_]) -> tuple[int, int]:
    """Where validation and test begin among the images that were decoded.

    Raises:
        InputError: if they are too few for three splits.
    """
    if kept.sum() < 3:
        broken = [name for name, good in zip(found.names, kept, strict=True) if not good]
        raise InputError(
            f"{found.root} has {kept.sum()} readable images, but three splits need at least 3"
            + "".join(f"; {note}" for note in left_out(broken))
        )
    return split_bounds(list(compress(found.positions, kept)))


def list_images(root: Path, progress: Progress | None = None) -> list[str]:
    """Relative paths, with forward slashes, of the image files below root; hidden ones left out."""
    names: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in files:
            path = Path(folder, file)
            if path.suffix.lower() in EXTENSIONS and not file.startswith(".") and path.is_file():
                names.append(path.relative_to(root).as_posix())
        if progress is not None:
            progress("looking for images", len(names), None)
    return names


def hash_position(name: str, seed: int) -> float:
    """Where in [0, 1) a relative path falls: the top 53 bits of sha256 of `seed:name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def split_bounds(positions: list[float]) -> tuple[int, int]:
    """Where validation and test begin in a sorted list of at least three hash positions."""
    n = len(positions)
    a = sum(p < TRAIN_SHARE for p in positions)
    b = sum(p < TRAIN_SHARE + VALIDATION_SHARE for p in positions)
    if 0 < a < b < n:
        return a, b
    part = max(1, round(n * VALIDATION_SHARE))
    return n - 2 * part, n - part


def _decode_all(
    found: Found, progress: Progress | None
) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Images (n readable, channels, size, size) in the order of names; the message per broken."""
    names, channels, size = found.names, found.channels, found.size
    try:
        images = np.empty((len(names), channels, size, size), np.uint8)
    except (MemoryError, ValueError):
        raise InputError(
            f"{len(names)} images of {size} x {size} need "
            f"{len(names) * channels * size**2 / 2**30:.1f} GiB: use a smaller --size"
        ) from None

    def decode(index: int) -> str | None:
        try:
            images[index] = load_square(found.root / names[index], channels, size)
        except InputError as error:
            return str(error)
        return None

    broken: dict[str, str] = {}
    kept = 0
    with quiet_pillow(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for index, problem in enumerate(pool.map(decode, range(len(names)))):
                if problem is not None:
                    broken[names[index]] = problem
                else:
                    if kept < index:  # close the gaps in place: no second copy of the data
                        images[kept] = images[index]
                    kept += 1
                if progress is not None:
                    progress("decoding images", index + 1, len(names))
        except BaseException:  # Ctrl-C should not wait for thousands of images
            pool.shutdown(cancel_futures=True)
            raise
    return images[:kept], broken


def first_level_labels(names: Iterable[str]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Class names and labels, int64, if all of the paths lie in a folder; else none and None."""
    tops = [name.partition("/")[0] if "/" in name else None for name in names]
    if None in tops:
        return (), None
    classes = tuple(sorted({top for top in tops if top is not None}))
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([number[top] for top in tops if top is not None], np.int64)


def left_out(broken: list[str]) -> tuple[str, ...]:
    """The note on files that could not be decoded, where there are some."""
    if not broken:
        return ()
    named = ", ".join(broken[:MAX_NAMED])
    more = f" and {len(broken) - MAX_NAMED} more" if len(broken) > MAX_NAMED else ""
    count = "1 unreadable image" if len(broken) == 1 else f"{len(broken)} unreadable images"
    return (f"{count} left out: {named}{more}",)
