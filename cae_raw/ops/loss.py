"""The squared error between reconstruction and target, and the gradient of an L1 term.

    total = sum of (y - t)^2            dy = scale * (y - t)
    dx = dx + scale * sign(x)           of scale * sum of |x|; sign(0) = 0

The caller turns the sum into a figure and picks the scale, because only it knows how many elements
the whole batch has: `half_mse` = total / (2 * elements) has scale 1 / elements, `mse` = total /
elements has scale 2 / elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import reduce, scratch
from cae_raw.ops.registry import Op

Array = Any

# --- NumPy reference ------------------------------------------------------------------------


def _squared_error(y: Array, target: Array, *, scale: float) -> tuple[Array, Array]:
    """(total, dy): the sum as a float64 array of shape (1,), and scale * (y - target).

    y and target have one shape. The sum is taken in float64: a float32 sum over a large batch would
    lose the digits that late training changes.
    """
    dy = y - target
    error = dy.reshape(-1).astype(np.float64)
    total = np.dot(error, error).reshape(1)
    dy *= scale
    return total, dy


def _l1_backward(dx: Array, x: Array, *, scale: float) -> None:
    """Add scale * sign(x) to dx, in place; dx and x of one shape."""
    sign = np.sign(x, out=scratch.empty(x.shape, x.dtype))
    sign *= scale
    dx += sign


# --- CUDA launcher --------------------------------------------------------------------------

SQUARED_ERROR = Kernel("loss", "squared_error", {"THREADS": 256, "PIECE": reduce.PIECE})


def _squared_error_cuda(y: Array, target: Array, *, scale: float) -> tuple[Array, Array]:
    backend = backend_of(y)
    pieces = -(-y.size // reduce.PIECE)
    dy = backend.empty(y.shape)
    partial = backend.empty((pieces,), np.float64)
    arguments = {
        "y": y, "target": target, "dy": dy, "partial": partial,
        "n": y.size, "R": pieces, "scale": scale,
    }  # fmt: skip
    backend.launch(SQUARED_ERROR, pieces, arguments)
    return reduce.add_all(backend, partial), dy


L1_BACKWARD = Kernel("loss", "l1_backward", SQUARED_ERROR.constants)


def _l1_backward_cuda(dx: Array, x: Array, *, scale: float) -> None:
    backend = backend_of(dx)
    arguments = {"dx": dx, "x": x, "n": dx.size, "scale": scale}
    backend.launch(L1_BACKWARD, backend.blocks(L1_BACKWARD, dx.size), arguments)


squared_error = Op("squared_error", _squared_error, _squared_error_cuda)
l1_backward = Op("l1_backward", _l1_backward, _l1_backward_cuda)
