"""What a data set is: three splits of uint8 images, and the options that choose them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from cae_raw.errors import InputError

if TYPE_CHECKING:
    from cae_raw.data.lmdb_stream import LmdbSplit

Progress = Callable[[str, int, "int | None"], None]
"""Called as progress(what, done, total); total is None where it is not known."""


@dataclass(frozen=True)
class Split:
    """Images of one split, kept as uint8 until a batch is made.

    images: uint8, shape (N, C, H, W), C-contiguous, values 0..255; may be read-only.
    labels: int64, shape (N,), or None when the data set has none.
    names: one name per image (file names for `folder`), or None.
    in_blocks: shuffled as a database is, by blocks, so that a folder's images are trained on in
        the same order from memory and from their cache.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...] | None = None
    in_blocks: bool = False

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 (N, C, H, W), not {self.images.dtype} {self.images.shape}"
            )
        if not self.images.flags.c_contiguous:
            raise ValueError("images must be C-contiguous")
        n = len(self.images)
        if self.labels is not None and (self.labels.shape != (n,) or self.labels.dtype != np.int64):
            raise ValueError(f"labels must be int64 of shape ({n},), not {self.labels.shape}")
        if self.names is not None and len(self.names) != n:
            raise ValueError(f"{len(self.names)} names for {n} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.images.shape
        return c, h, w

    def first(self, n: int) -> NDArray[np.uint8]:
        """The first n images, or all where there are fewer."""
        return self.images[:n]

    def fingerprint(self) -> dict[str, Any]:
        """What tells these images from others: their number, shape, and a SHA-256 of the pixels."""
        return pixels_fingerprint(self.images.shape, hashlib.sha256(self.images.data).hexdigest())

    def limit(self, n: int) -> Split:
        """The first n examples as views; all of them when there are fewer.

        Raises InputError when n < 1.
        """
        if n < 1:
            raise InputError(f"cannot limit a split to {n} images: give 1 or more")
        return Split(
            self.images[:n],
            None if self.labels is None else self.labels[:n],
            None if self.names is None else self.names[:n],
            self.in_blocks,
        )

    def choose(self, positions: NDArray[np.int64]) -> Split:
        """The examples at these positions, as a copy."""
        return Split(
            self.images[positions],
            None if self.labels is None else self.labels[positions],
            None if self.names is None else tuple(self.names[i] for i in positions.tolist()),
            self.in_blocks,
        )


def pixels_fingerprint(shape: tuple[int, ...], sha256: str) -> dict[str, Any]:
    """A split's fingerprint from the shape (N, C, H, W) and the SHA-256 of all of its pixels."""
    n, *image_shape = shape
    return {"images": n, "shape": image_shape, "sha256": sha256}


# Images in memory, or in a database that is read as it is needed.
Images = Union[Split, "LmdbSplit"]


@dataclass(frozen=True)
class Dataset:
    """A named data set; `notes` are one-line things that the user should be told."""

    name: str
    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataOptions:
    """How to find or make a data set; each data set reads the fields that concern it.

    data_dir: the folder with the files (mnist, cifar10) or with the images (folder).
    size: `folder` only; images become size x size.
    seed: draws `shapes` and splits `folder`. It is not the training seed, so that runs with
        different training seeds are compared on the same data.
    channels: `folder` only; 1 (gray) or 3 (RGB, the default).
    cache_dir: `folder` only; where decoded images are kept and read from, None to keep them in
        memory. The images, their splits and their order are the same.
    validation_dir: `lmdb` only; a second database, to validate on.
    channel_order: `lmdb` only; "bgr", as Caffe's tools store colours, or "rgb".
    resize: `lmdb` only; (height, width) for records of another size, None to refuse them.
    """

    data_dir: Path | None = None
    size: int | None = None
    seed: int = 0
    channels: int | None = None
    cache_dir: Path | None = None
    validation_dir: Path | None = None
    channel_order: str = "bgr"
    resize: tuple[int, int] | None = None
    progress: Progress | None = None
