"""Fully connected layer: a matrix product with bias.

y  = x w^T + b        x (N, I), w (O, I), b (O,), y (N, O)
dx = dy w             dw = dy^T x             db = sum of dy over the batch

The operands of the three products may be rounded first, or split: `precision`, see `precision.py`.
On a GPU they then go through its tensor cores.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.errors import unknown_name
from cae_raw.ops import activation as act
from cae_raw.ops.precision import rounded
from cae_raw.ops.registry import Op

Array = Any

# --- NumPy reference ------------------------------------------------------------------------


def _forward(
    x: Array, w: Array, b: Array, *, activation: str | None = None, precision: str = "float32"
) -> Array:
    """y (N, O) = x (N, I) times the transpose of w (O, I), plus b (O,), then the activation."""
    y = np.matmul(rounded(x, precision), rounded(w, precision).T)
    y += b
    return act.apply_in_place(y, activation)


def _backward_input(dy: Array, w: Array, *, precision: str = "float32") -> Array:
    """dx (N, I) = dy (N, O) times w (O, I)."""
    return np.matmul(rounded(dy, precision), rounded(w, precision))


def _backward_weight(
    dy: Array, x: Array, *, out: Array | None = None, precision: str = "float32"
) -> Array:
    """dw (O, I) = transpose of dy (N, O) times x (N, I); overwrites `out`."""
    return np.matmul(rounded(dy, precision).T, rounded(x, precision), out=out)


def _backward_bias(dy: Array, *, out: Array | None = None) -> Array:
    """db (O,) = sum of dy (N, O) over the batch; overwrites `out`."""
    return np.sum(dy, axis=0, out=out)


# --- CUDA launcher --------------------------------------------------------------------------

# A block of 8 x 16 threads, each with 8 x 4 of the tile's 64 x 64 sums.
CONSTANTS = {
    "THREADS": 128, "TILE_M": 64, "TILE_N": 64, "TILE_K": 16, "THREAD_M": 8, "THREAD_N": 4,
}  # fmt: skip
# A block of 2 x 2 warps, each with 32 x 64 of the tile's 64 x 128 sums.
TF32 = {
    "THREADS": 128, "TILE_M": 64, "TILE_N": 128, "TILE_K": 16, "WARPS_M": 2, "BF16": 0, "SPLIT": 0,
}  # fmt: skip
TF32X3 = {**TF32, "SPLIT": 1}
BF16 = {**TF32, "BF16": 1}


def _on_tensor_cores(constants: dict[str, int]) -> tuple[Kernel, Kernel, Kernel]:
    file = "linear_mma"
    return (
        Kernel(file, "linear_forward_mma", constants),
        Kernel(file, "linear_backward_input_mma", constants),
        Kernel(file, "linear_backward_weight_mma", constants),
    )


FORWARD = Kernel("linear", "linear_forward", CONSTANTS)
BACKWARD_INPUT = Kernel("linear", "linear_backward_input", CONSTANTS)
BACKWARD_WEIGHT = Kernel("linear", "linear_backward_weight", CONSTANTS)
BACKWARD_BIAS = Kernel("linear", "linear_backward_bias", CONSTANTS)
COMBINE = Kernel("linear", "linear_combine", CONSTANTS)
FORWARD_TF32, BACKWARD_INPUT_TF32, BACKWARD_WEIGHT_TF32 = _on_tensor_cores(TF32)
FORWARD_TF32X3, BACKWARD_INPUT_TF32X3, BACKWARD_WEIGHT_TF32X3 = _on_tensor_cores(TF32X3)
FORWARD_BF16, BACKWARD_INPUT_BF16, BACKWARD_WEIGHT_BF16 = _on_tensor_cores(BF16)

KERNELS = {
    "float32": (FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT),
    "tf32": (FORWARD_TF32, BACKWARD_INPUT_TF32, BACKWARD_WEIGHT_TF32),
    "tf32x3": (FORWARD_TF32X3, BACKWARD_INPUT_TF32X3, BACKWARD_WEIGHT_TF32X3),
    "bf16": (FORWARD_BF16, BACKWARD_INPUT_BF16, BACKWARD_WEIGHT_BF16),
}

# How k is cut. All of it is constant, because the order of a sum follows it: an H200's 132
# multiprocessors, the blocks that one holds, the shortest range, and how many steps along k take as
# long as writing a partial sum and reading it again (8 bytes at 4.8 TB/s; a step is two operations,
# at 60, about 200, about 100 and about 270 TFLOP/s).
MULTIPROCESSORS, RESIDENT, SHORTEST = 132, 4, 256
COST_OF_A_SPLIT = {"float32": 50, "tf32": 170, "tf32x3": 80, "bf16": 225}


def _kernel(which: int, precision: str) -> Kernel:
    if precision not in KERNELS:
        raise unknown_name("precision", precision, KERNELS)
    return KERNELS[precision][which]


@functools.lru_cache(maxsize=256)
def _splits(m: int, n: int, k: int, precision: str) -> tuple[int, int, int]:
    """An m x n product over k: the grid, into how many ranges k is cut, and their length.

    The cut with the lowest estimate of the time that the busiest multiprocessor takes: its blocks
    one after the other, more slowly where there are too few to hide each other's waiting.
    """
    constants = KERNELS[precision][0].constants
    tiles = -(-m // constants["TILE_M"]) * -(-n // constants["TILE_N"])
    step = constants["TILE_K"]

    def length(splits: int) -> int:
        return max(1, -(-k // (splits * step))) * step

    def time(splits: int) -> float:
        blocks = -(-tiles * splits // MULTIPROCESSORS)  # on the busiest
        waiting = 1 + 1 / max(1, min(blocks, RESIDENT))
        partial = COST_OF_A_SPLIT[precision] * tiles * splits / MULTIPROCESSORS
        return blocks * length(splits) * waiting + (partial if splits > 1 else 0)

    best = length(min(range(1, max(2, k // SHORTEST + 1)), key=time))
    splits = max(1, -(-k // best))  # without those that would be empty
    return tiles * splits, splits, best


def _launch_product(
    which: int,
    precision: str,
    arrays: dict[str, Array],
    name: str,
    out: Array,
    sizes: dict[str, int],
    k: int,
) -> Array:
    """Run one of the three products into `out` (M, N), which the kernel calls `name`."""
    kernel = _kernel(which, precision)
    backend = backend_of(out)
    m, n = out.shape
    grid, splits, k_per_split = _splits(m, n, k, precision)
    cut = {"k_per_split": k_per_split, "splits": splits}
    # Only the forward kernel has an epilogue; it must not run before the ranges of k are added.
    epilogue = {"activation": sizes.pop("activation")} if "activation" in sizes else {}
    target = out if splits == 1 else backend.empty((splits, m, n))
    backend.launch(kernel, grid, {**arrays, name: target, **sizes, **cut, **epilogue})
    if splits > 1:
        arguments = {
            "partial": target, "b": arrays.get("b"), "out": out,
            "M": m, "N": n, "splits": splits, "activation": 0, **epilogue,
        }  # fmt: skip
        backend.launch(COMBINE, backend.blocks(COMBINE, out.size), arguments)
    return out


def _forward_cuda(
    x: Array, w: Array, b: Array, *, activation: str | None = None, precision: str = "float32"
) -> Array:
    (n, i), o = x.shape, w.shape[0]
    y = backend_of(x).empty((n, o))
    sizes = {"N": n, "I": i, "O": o, "activation": act.code_of(activation)}
    return _launch_product(0, precision, {"x": x, "w": w, "b": b}, "y", y, sizes, i)


def _backward_input_cuda(dy: Array, w: Array, *, precision: str = "float32") -> Array:
    (n, o), i = dy.shape, w.shape[1]
    dx = backend_of(dy).empty((n, i))
    sizes = {"N": n, "I": i, "O": o}
    return _launch_product(1, precision, {"dy": dy, "w": w}, "dx", dx, sizes, o)


def _backward_weight_cuda(
    dy: Array, x: Array, *, out: Array | None = None, precision: str = "float32"
) -> Array:
    (n, o), i = dy.shape, x.shape[1]
    dw = backend_of(dy).empty((o, i)) if out is None else out
    sizes = {"N": n, "I": i, "O": o}
    return _launch_product(2, precision, {"dy": dy, "x": x}, "dw", dw, sizes, n)


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
