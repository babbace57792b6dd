"""The CPU: arrays are NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cae_raw.backends.base import Array, Shape


class NumpyBackend:
    """NumPy arrays in host memory; every operation is done when it returns."""

    name = "cpu"

    def empty(self, shape: Shape, dtype: Any = np.float32) -> Array:
        return np.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: Any = np.float32) -> Array:
        return np.zeros(shape, dtype)

    def asarray(self, host: np.ndarray) -> Array:
        return np.ascontiguousarray(host)

    def to_numpy(self, array: Array) -> np.ndarray:
        return np.asarray(array)

    def uploaded(self, batches: Iterator[np.ndarray]) -> Iterator[Array]:
        return batches

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def __reduce__(self) -> str:
        """There is one, in every process: a copy of a model asks whether its backend is it."""
        return "NUMPY"


NUMPY = NumpyBackend()
