"""Images of a split in order with their names and labels, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.base import Dataset, Images, Split
from cae_raw.errors import unknown_name

READ_TOGETHER = 1024  # images, when looking for one
SPLITS = ("train", "validation", "test")


class Named(NamedTuple):
    """Some images in a row.

    images: uint8 (n, C, H, W). names: n of them. labels: int64 (n,), or None without any.
    """

    images: NDArray[np.uint8]
    names: list[str]
    labels: NDArray[np.int64] | None


def find_split(dataset: Dataset, name: str) -> Images:
    """The split of this name. Raises InputError for another one."""
    if name not in SPLITS:
        raise unknown_name("split", name, SPLITS)
    split: Images = getattr(dataset, name)
    return split


class Found(NamedTuple):
    """An image of a split: uint8 (C, H, W), its place from 0, its label where there are labels."""

    pixels: NDArray[np.uint8]
    number: int
    label: int | None


def find_image(split: Images, index: int, label: int | None = None) -> Found | None:
    """The image at a place, counted from 0, or so many among those of a label; None beyond them."""
    start, left = 0, index
    for images, _, labels in in_order(split, READ_TOGETHER, ""):
        here = np.arange(len(images))
        if label is not None:
            here = here[:0] if labels is None else np.flatnonzero(labels == label)
        if left < len(here):
            i = int(here[left])
            return Found(images[i], start + i, None if labels is None else int(labels[i]))
        left -= len(here)
        start += len(images)
    return None


def in_order(split: Images, batch_size: int, prefix: str) -> Iterator[Named]:
    """A split's images in their own order, `batch_size` at a time.

    An image without a name is called PREFIX/NUMBER, counted from 0.
    """
    if isinstance(split, Split):
        for start in range(0, len(split), batch_size):
            rows = slice(start, start + batch_size)
            images = split.images[rows]
            numbers = range(start, start + len(images))
            names = split.names[rows] if split.names else [f"{prefix}/{i}" for i in numbers]
            labels = None if split.labels is None else split.labels[rows]
            yield Named(images, list(names), labels)
        return
    all_labels, start = split.labels(), 0
    for images in split.in_order(batch_size):
        stop = start + len(images)
        labels = None if all_labels is None else all_labels[start:stop]
        yield Named(images, split.names(start, stop), labels)
        start = stop
