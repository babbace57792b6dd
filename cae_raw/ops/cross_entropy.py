"""Softmax cross-entropy of logits and class numbers, value and gradient in one pass.

    m[n]  = max over k of x[n,k]
    total = sum over n of  log(sum over k of e^(x[n,k] - m[n])) + m[n] - x[n,labels[n]]
    dx    = scale * (softmax(x) - onehot(labels))        softmax(x)[n,k] = e^(x[n,k] - m[n]) / sum

Shapes: x, dx (N, K), K at least 1; labels (N,). Without the maximum, e^x would overflow from 89 on.
The caller turns the sum into a mean and picks the scale, because only it knows how many rows the
whole batch has: the mean over N rows has scale 1 / N.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import reduce
from cae_raw.ops.registry import Op

Array = Any

# --- NumPy reference ------------------------------------------------------------------------


def _cross_entropy(x: Array, labels: Array, *, scale: float) -> tuple[Array, Array]:
    """(total, dx): the sum as a float64 array of shape (1,), and scale * (softmax - onehot).

    x: (N, K). labels: int64 or uint8 (N,); one outside [0, K) makes its row and the sum NaN, as on
    a device, which cannot raise. NaN in a row and +infinity do the same.
    """
    n, k = x.shape
    rows = np.arange(n)
    known = (labels >= 0) & (labels < k)
    picked = np.where(known, labels, 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        shifted = x - x.max(axis=1, keepdims=True)
        dx = np.exp(shifted)
        sums = dx.sum(axis=1)
        sums[~known] = np.nan
        losses = np.log(sums) - shifted[rows, picked]
        dx /= sums[:, None]
    dx[rows, picked] -= 1
    dx *= scale
    return losses.sum(dtype=np.float64).reshape(1), dx


# --- CUDA launcher --------------------------------------------------------------------------

CONSTANTS = {"THREADS": 256, "ROWS": 64}
CROSS_ENTROPY = Kernel("cross_entropy", "cross_entropy", CONSTANTS)
CROSS_ENTROPY_UINT8 = Kernel("cross_entropy", "cross_entropy_uint8", CONSTANTS)


def _cross_entropy_cuda(x: Array, labels: Array, *, scale: float) -> tuple[Array, Array]:
    backend = backend_of(x)
    n, k = x.shape
    pieces = -(-n // CONSTANTS["ROWS"])
    dx = backend.empty(x.shape)
    partial = backend.empty((pieces,), np.float64)
    arguments = {
        "x": x, "labels": labels, "dx": dx, "partial": partial,
        "N": n, "K": k, "R": pieces, "scale": scale,
    }  # fmt: skip
    kernel = CROSS_ENTROPY_UINT8 if labels.dtype == np.uint8 else CROSS_ENTROPY
    backend.launch(kernel, pieces, arguments)
    return reduce.add_all(backend, partial), dx


cross_entropy = Op("cross_entropy", _cross_entropy, _cross_entropy_cuda)
