"""Small LMDBs of Datum records, written by liblmdb and protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from cae_raw.data.datum import datum_class


def pixels(n: int, shape: tuple[int, int, int] = (3, 8, 6), seed: int = 0) -> np.ndarray:
    """Random images, uint8 (n, C, H, W)."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def record(image: np.ndarray, label: int = 0, **fields: Any) -> bytes:
    """A Datum that holds this array (C, H, W) as it is; fields given by name win."""
    c, h, w = image.shape
    values = {"channels": c, "height": h, "width": w, "data": image.tobytes(), "label": label}
    values.update(fields)
    return datum_class()(**{k: v for k, v in values.items() if v is not None}).SerializeToString()


def key(i: int) -> bytes:
    return b"%08d_images/%d.jpg" % (i, i)


def write(path: Path, items: Iterable[tuple[bytes, bytes]], **options: Any) -> Path:
    """An LMDB of these records at `path`: a folder, or a file with subdir=False."""
    with (
        lmdb.open(str(path), map_size=1 << 30, sync=False, **options) as env,
        env.begin(write=True) as transaction,
    ):
        for name, value in items:
            transaction.put(name, value)
    return path


def write_images(path: Path, images: np.ndarray, **options: Any) -> Path:
    """RGB or gray images (N, C, H, W), stored as Caffe does: blue, green, red; labels i % 7 - 3."""
    items = ((key(i), record(image[::-1], i % 7 - 3)) for i, image in enumerate(images))
    return write(path, items, **options)
