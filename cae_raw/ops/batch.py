"""Making a batch: pick images of a uint8 data set by index and scale them to the model's range.

    x[n] = data[indices[n]] * scale + shift, in float32, rounded after each operation
    out[n] = data[indices[n]], mirrored left to right where flips[n], still bytes

The data set stays bytes, four times smaller than floats, until a batch is made.
Shapes: data (M, C, H, W) uint8, indices (N,) int64, x (N, C, H, W) float32, out the same in uint8.
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


def _gather_flipped(data: Array, indices: Array, flips: Array) -> Array:
    """The images named by indices (each in [0, M)), uint8; flips is uint8 (N,), 0 or 1."""
    out = data[indices]
    chosen = flips != 0
    out[chosen] = out[chosen, ..., ::-1]
    return out


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


GATHER_FLIPPED = Kernel("batch", "gather_flipped", GATHER.constants)


def _gather_flipped_cuda(data: Array, indices: Array, flips: Array) -> Array:
    """As the reference; an index outside [0, M) gives a black image, the device cannot raise."""
    backend = backend_of(data)
    m, *image = data.shape
    n = indices.shape[0]
    out = backend.empty((n, *image), np.uint8)
    arguments = {
        "data": data, "indices": indices, "flips": flips, "out": out,
        "M": m, "N": n, "L": math.prod(image), "W": image[-1],
    }  # fmt: skip
    backend.launch(GATHER_FLIPPED, backend.blocks(GATHER_FLIPPED, out.size), arguments)
    return out


gather_flipped = Op("gather_flipped", _gather_flipped, _gather_flipped_cuda)
gather = Op("gather", _gather, _gather_cuda)
