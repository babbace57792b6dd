"""Looking at every record of an LMDB: what is in it, and what is damaged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.data import datum
from cae_raw.data.base import Progress
from cae_raw.data.image_file import silence_pillow
from cae_raw.data.lmdb_datum import shown
from cae_raw.data.lmdb_pages import LmdbFile
from cae_raw.errors import InputError

MAX_DAMAGE = 100  # lines that are kept; the others are counted
BLOCK = 64  # records looked at between two reports of progress


@dataclass
class Inspection:
    """What all records of a database together hold.

    shapes: how many images have each shape, (C, H, W). labels: how many records each label.
    low, high: the smallest and the largest value of all pixels; None without any.
    damage: one line per damaged page or record, the first hundred of `damaged`.
    first: the first images that can be shown, with their keys.
    """

    path: Path
    records: int = 0
    encoded: int = 0
    shapes: Counter[datum.Shape] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    low: int | None = None
    high: int | None = None
    damage: list[str] = field(default_factory=list)
    damaged: int = 0
    first: list[tuple[str, NDArray[np.uint8]]] = field(default_factory=list)

    def add(self, key: bytes, pixels: NDArray[np.uint8], count: int) -> None:
        """One image more, kept while there are fewer than `count`."""
        c, h, w = pixels.shape
        self.shapes[c, h, w] += 1
        low, high = int(pixels.min()), int(pixels.max())
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        if len(self.first) < count:
            self.first.append((key.decode("utf-8", "backslashreplace"), pixels))

    def add_damage(self, line: str) -> None:
        self.damaged += 1
        if len(self.damage) < MAX_DAMAGE:
            self.damage.append(line)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "records": self.records,
            "encoded": self.encoded,
            "shapes": {"x".join(map(str, shape)): n for shape, n in self.shapes.most_common()},
            "labels": {str(label): n for label, n in sorted(self.labels.items())},
            "value_range": None if self.low is None else [self.low, self.high],
            "damaged": self.damaged,
            "damage": self.damage,
        }


def inspect(
    path: Path, channel_order: str = "bgr", count: int = 64, progress: Progress | None = None
) -> Inspection:
    """Decode every record of a database, of whatever shapes, and sum up what is there.

    Args:
        channel_order: how colours are stored; it concerns the images in `first` only.
        count: of images that are kept in `first`.

    Raises:
        InputError: if it cannot be read at all; single damaged pages and records are reported.
    """
    datum.check_channel_order(channel_order)
    silence_pillow()
    found = Inspection(path)
    file = LmdbFile(path, damage=found.add_damage)
    found.records = len(file)
    for start in range(0, len(file), BLOCK):
        stop = min(start + BLOCK, len(file))
        keys, places = file.keys(start, stop), file.places([(start, stop)])
        for i, key in enumerate(keys):
            try:
                message = datum.parse(file.value(*places.one(i)))
                found.labels[message.label] += 1
                found.encoded += message.encoded
                found.add(key, datum.to_pixels(message, channel_order), count)
            except InputError as error:
                found.add_damage(f"record {shown(key)} {error}")
        file.taken(int(places.size.sum()))
        if progress is not None:
            progress("looking at records", stop, len(file))
    file.check_unchanged()
    return found
