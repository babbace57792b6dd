"""What every backend offers: making arrays, and moving them to and from the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

Array = Any
Shape = tuple[int, ...]


class Backend(Protocol):
    """A place for arrays. Chosen once, from `--device`, and passed down."""

    name: str  # "cpu", "cuda:0"

    def empty(self, shape: Shape, dtype: Any = np.float32) -> Array:
        """An uninitialised C-contiguous array."""

    def zeros(self, shape: Shape, dtype: Any = np.float32) -> Array:
        """A C-contiguous array of zeros."""

    def asarray(self, host: np.ndarray) -> Array:
        """A host array here, C-contiguous; on the CPU the array itself where it is that already."""

    def to_numpy(self, array: Array) -> np.ndarray:
        """The array on the host; waits for the work that fills it."""

    def uploaded(self, batches: Iterator[np.ndarray]) -> Iterator[Array]:
        """Host batches uint8 (n, ...) on this backend, none larger than the first.

        Each is valid until the next one is asked for.
        """

    def synchronize(self) -> None:
        """Wait until all work handed to this backend is done."""
