"""Making a batch: pick images of a uint8 data set by index and scale them to the model's range.

    x[n] = data[indices[n]] * scale + shift, in float32, rounded after each operation

The data set stays bytes, four times smaller than floats, until a batch is made.
Shapes: data (M, C, H, W) uint8, indices (N,) int64, x (N, C, H, W) float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops.registry import Op

Array = Any

# --- NumPy reference ------------------------------------------------------------------------


def _gather(data: Array, indices: Array, *, scale: float, shift: float) -> Array:
    """The images named by indices (each in [0, M)), as float32 (N, C, H, W)."""
    x = data[indices].astype(np.float32)
    x *= np.float32(scale)
    x += np.float32(shift)
    return x


# --- CUDA launcher --------------------------------------------------------------------------

GATHER = Kernel("batch", "gather", {"THREADS": 256})


def _gather_cuda(data: Array, indices: Array, *, scale: float, shift: float) -> Array:
    """As the reference; an index outside [0, M) gives an image of NaN, the device cannot raise."""
    backend = backend_of(data)
    m, *image = data.shape
    n = indices.shape[0]
    x = backend.empty((n, *image))
    arguments = {
        "data": data, "indices": indices, "x": x,
        "M": m, "N": n, "L": math.prod(image), "scale": scale, "shift": shift,
    }  # fmt: skip
    backend.launch(GATHER, backend.blocks(GATHER, x.size), arguments)
    return x


gather = Op("gather", _gather, _gather_cuda)
