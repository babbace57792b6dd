"""The second stage of device sums: partial results of many blocks, added in a fixed order.

The first stage writes one partial result per piece of the problem, and the number of pieces follows
from the shapes alone. So a sum has the same bits in every run, whatever the grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import CudaBackend, Kernel

Array = Any

CONSTANTS = {"THREADS": 256}
COLUMNS = 32  # that one block adds
PIECE = 4096  # elements behind one partial sum of a whole array

ROWS = Kernel("reduce", "reduce_rows", CONSTANTS)
TOTAL = Kernel("reduce", "reduce_total", CONSTANTS)


def add_rows(backend: CudaBackend, partial: Array, rows: int, out: Array) -> None:
    """out[m] = the sum of partial (rows, out.size) over its rows, in float32."""
    arguments = {"partial": partial, "out": out, "R": rows, "M": out.size}
    backend.launch(ROWS, -(-out.size // COLUMNS), arguments)


def add_all(backend: CudaBackend, partial: Array) -> Array:
    """The sum of the float64 vector `partial`, as a float64 array of shape (1,)."""
    out = backend.empty((1,), np.float64)
    backend.launch(TOTAL, 1, {"partial": partial, "out": out, "R": partial.size})
    return out
