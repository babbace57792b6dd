"""Zero padding of the two spatial axes, and its backward pass, a crop.

    y[n,c,i,j] = x[n,c, i - top, j - left], 0 outside x       dx = dy without its borders

Shapes: x (N, C, H, W), y (N, C, H + top + bottom, W + left + right).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops.registry import Op

Array = Any
Borders = tuple[int, int, int, int]

# --- NumPy reference ------------------------------------------------------------------------


def _forward(x: Array, *, borders: Borders) -> Array:
    """x with zeros around it; `borders` is (top, bottom, left, right), none negative."""
    top, bottom, left, right = borders
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))


def _backward(dy: Array, *, borders: Borders) -> Array:
    """dy with the borders cut off, C-contiguous."""
    top, bottom, left, right = borders
    h, w = dy.shape[2:]
    return np.ascontiguousarray(dy[:, :, top : h - bottom, left : w - right])


# --- CUDA launcher --------------------------------------------------------------------------

CONSTANTS = {"THREADS": 256}
FORWARD = Kernel("pad2d", "pad2d_forward", CONSTANTS)
BACKWARD = Kernel("pad2d", "pad2d_backward", CONSTANTS)


def _forward_cuda(x: Array, *, borders: Borders) -> Array:
    backend = backend_of(x)
    n, c, h, w = x.shape
    top, bottom, left, right = borders
    ph, pw = h + top + bottom, w + left + right
    y = backend.empty((n, c, ph, pw))
    arguments = {
        "x": x, "y": y,
        "M": n * c, "H": h, "W": w, "PH": ph, "PW": pw, "top": top, "left": left,
    }  # fmt: skip
    backend.launch(FORWARD, backend.blocks(FORWARD, y.size), arguments)
    return y


def _backward_cuda(dy: Array, *, borders: Borders) -> Array:
    backend = backend_of(dy)
    n, c, ph, pw = dy.shape
    top, bottom, left, right = borders
    h, w = ph - top - bottom, pw - left - right
    dx = backend.empty((n, c, h, w))
    arguments = {
        "dy": dy, "dx": dx,
        "M": n * c, "H": h, "W": w, "PH": ph, "PW": pw, "top": top, "left": left,
    }  # fmt: skip
    backend.launch(BACKWARD, backend.blocks(BACKWARD, dx.size), arguments)
    return dx


pad2d_forward = Op("pad2d_forward", _forward, _forward_cuda)
pad2d_backward = Op("pad2d_backward", _backward, _backward_cuda)
