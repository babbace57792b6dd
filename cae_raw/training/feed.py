"""Where a training's batches come from: a data set that lies on the device, or one that streams.

A split in memory is moved to the model's backend once, and a batch is a list of indices into it: on
a GPU no image crosses the bus again. A split that is larger than memory hands over its batches one
by one, read ahead by threads of its own. Either way a training batch is a pair (images, indices).

Where images are flipped, a batch is gathered here, still as bytes, and names all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cae_raw.backends import Backend
from cae_raw.data.base import Images, Split
from cae_raw.data.lmdb_stream import LmdbSplit, streaming_order
from cae_raw.data.order import epoch_flips, epoch_order
from cae_raw.ops.batch import gather_flipped

Array = Any
Batch = tuple[Array, np.ndarray]

STREAMED = 1024  # images per array where no batch size is asked for


class Feed:
    """Batches on one backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._placed: dict[int, tuple[Split, Array]] = {}

    def shuffled(
        self,
        split: Images,
        seed: int,
        epoch: int,
        batch_size: int,
        start: int = 0,
        *,
        flip: bool = False,
    ) -> Iterator[Batch]:
        """Every image once in the order of (seed, epoch), from batch `start` on.

        The last batch may be smaller. With `flip`, about half of the images are mirrored left to
        right; which ones is a function of (seed, epoch, position in the epoch).
        """
        batches = self._shuffled(split, seed, epoch, batch_size, start)
        if not flip:
            yield from batches
            return
        flips, first = epoch_flips(len(split), seed, epoch), start * batch_size
        asarray = self.backend.asarray
        for images, indices in batches:
            chosen = flips[first : first + len(indices)]
            yield (
                gather_flipped(images, asarray(indices), asarray(chosen)),
                np.arange(len(indices)),
            )
            first += len(indices)

    def _shuffled(
        self, split: Images, seed: int, epoch: int, batch_size: int, start: int
    ) -> Iterator[Batch]:
        if isinstance(split, LmdbSplit):
            batches = split.shuffled(seed, epoch, batch_size, start)
            for images in self.backend.uploaded(batches):
                yield images, np.arange(len(images))
            return
        images = self._place(split)
        order = (streaming_order if split.in_blocks else epoch_order)(len(split), seed, epoch)
        for first in range(start * batch_size, len(split), batch_size):
            yield images, order[first : first + batch_size]

    def in_order(self, split: Images) -> Iterator[Array]:
        """Every image once, in the split's own order, in as many arrays as it takes."""
        if isinstance(split, LmdbSplit):
            yield from self.backend.uploaded(split.in_order(STREAMED))
        else:
            yield self._place(split)

    def _place(self, split: Split) -> Array:
        """The split's images on the backend, moved there once."""
        key = id(split)
        if key not in self._placed:
            # Kept with the split itself, so that no other one can get its id.
            self._placed[key] = split, self.backend.asarray(np.asarray(split.images))
        return self._placed[key][1]
