"""Fully connected layer: a matrix product with bias.

y  = x w^T + b        x (N, I), w (O, I), b (O,), y (N, O)
dx = dy w             dw = dy^T x             db = sum of dy over the batch
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import activation as act
from cae_raw.ops.registry import Op

Array = Any

# --- NumPy reference ------------------------------------------------------------------------


def _forward(x: Array, w: Array, b: Array, *, activation: str | None = None) -> Array:
    """y (N, O) = x (N, I) times the transpose of w (O, I), plus b (O,), then the activation."""
    y = np.matmul(x, w.T)
    y += b
    return act.apply_in_place(y, activation)


def _backward_input(dy: Array, w: Array) -> Array:
    """dx (N, I) = dy (N, O) times w (O, I)."""
    return np.matmul(dy, w)


def _backward_weight(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    """dw (O, I) = transpose of dy (N, O) times x (N, I); overwrites `out`."""
    return np.matmul(dy.T, x, out=out)


def _backward_bias(dy: Array, *, out: Array | None = None) -> Array:
    """db (O,) = sum of dy (N, O) over the batch; overwrites `out`."""
    return np.sum(dy, axis=0, out=out)


# --- CUDA launcher --------------------------------------------------------------------------

# A block of 8 x 16 threads, each with 8 x 4 of the tile's 64 x 64 sums.
CONSTANTS = {
    "THREADS": 128, "TILE_M": 64, "TILE_N": 64, "TILE_K": 16, "THREAD_M": 8, "THREAD_N": 4,
}  # fmt: skip
# Cut k where the tiles alone are fewer than this, into ranges of at least SPLIT_K.
WANTED_BLOCKS, SPLIT_K = 256, 256

FORWARD = Kernel("linear", "linear_forward", CONSTANTS)
BACKWARD_INPUT = Kernel("linear", "linear_backward_input", CONSTANTS)
BACKWARD_WEIGHT = Kernel("linear", "linear_backward_weight", CONSTANTS)
BACKWARD_BIAS = Kernel("linear", "linear_backward_bias", CONSTANTS)
COMBINE = Kernel("linear", "linear_combine", CONSTANTS)


def _splits(m: int, n: int, k: int) -> tuple[int, dict[str, int]]:
    """The grid of an m x n product over k, and the arguments that say how k is cut."""
    tiles = -(-m // CONSTANTS["TILE_M"]) * -(-n // CONSTANTS["TILE_N"])
    splits = max(1, min(WANTED_BLOCKS // max(tiles, 1), k // SPLIT_K))
    step = CONSTANTS["TILE_K"]
    k_per_split = max(1, -(-k // (splits * step))) * step
    splits = max(1, -(-k // k_per_split))
    return tiles * splits, {"k_per_split": k_per_split, "splits": splits}


def _launch_product(
    kernel: Kernel, arrays: dict[str, Array], name: str, out: Array, sizes: dict[str, int], k: int
) -> Array:
    """Run one of the three products into `out` (M, N), which the kernel calls `name`."""
    backend = backend_of(out)
    m, n = out.shape
    grid, cut = _splits(m, n, k)
    # Only the forward kernel has an epilogue; it must not run before the ranges of k are added.
    epilogue = {"activation": sizes.pop("activation")} if "activation" in sizes else {}
    splits = cut["splits"]
    target = out if splits == 1 else backend.empty((splits, m, n))
    backend.launch(kernel, grid, {**arrays, name: target, **sizes, **cut, **epilogue})
    if splits > 1:
        arguments = {
            "partial": target, "b": arrays.get("b"), "out": out,
            "M": m, "N": n, "splits": splits, "activation": 0, **epilogue,
        }  # fmt: skip
        backend.launch(COMBINE, backend.blocks(COMBINE, out.size), arguments)
    return out


def _forward_cuda(x: Array, w: Array, b: Array, *, activation: str | None = None) -> Array:
    (n, i), o = x.shape, w.shape[0]
    y = backend_of(x).empty((n, o))
    sizes = {"N": n, "I": i, "O": o, "activation": act.code_of(activation)}
    return _launch_product(FORWARD, {"x": x, "w": w, "b": b}, "y", y, sizes, i)


def _backward_input_cuda(dy: Array, w: Array) -> Array:
    (n, o), i = dy.shape, w.shape[1]
    dx = backend_of(dy).empty((n, i))
    sizes = {"N": n, "I": i, "O": o}
    return _launch_product(BACKWARD_INPUT, {"dy": dy, "w": w}, "dx", dx, sizes, o)


def _backward_weight_cuda(dy: Array, x: Array, *, out: Array | None = None) -> Array:
    (n, o), i = dy.shape, x.shape[1]
    dw = backend_of(dy).empty((o, i)) if out is None else out
    sizes = {"N": n, "I": i, "O": o}
    return _launch_product(BACKWARD_WEIGHT, {"dy": dy, "x": x}, "dw", dw, sizes, n)


def _backward_bias_cuda(dy: Array, *, out: Array | None = None) -> Array:
    backend = backend_of(dy)
    n, o = dy.shape
    db = backend.empty((o,)) if out is None else out
    backend.launch(BACKWARD_BIAS, -(-o // 32), {"dy": dy, "db": db, "N": n, "O": o})
    return db


linear_forward = Op("linear_forward", _forward, _forward_cuda)
linear_backward_input = Op("linear_backward_input", _backward_input, _backward_input_cuda)
linear_backward_weight = Op("linear_backward_weight", _backward_weight, _backward_weight_cuda)
linear_backward_bias = Op("linear_backward_bias", _backward_bias, _backward_bias_cuda)
