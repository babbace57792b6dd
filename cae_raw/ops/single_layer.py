"""The single-layer autoencoder from bytes to gradients, as two operations.

    x = image * scale + shift       h = tanh(w1 * x + b1)       y = act(w2 * h + b2)

with the first convolution padded by 2 and the second not padded, both 3x3, as in
`cae_raw.models.single_layer`; act is tanh or nothing. For the images that `indices` names:

    total     = (sum of (y - x)^2, sum of |h|)
    gradients = those of gradient_scale / 2 * sum of (y - x)^2 + sparsity * sum of |h|

The NumPy reference goes layer by layer. On a GPU kernels/single_layer_step.cu does it in one launch
and a small reduction, and neither h nor y is ever in device memory. `serves` says which
models it is made for; the others go layer by layer there as well.

With `precision` tf32 or tf32x3 it is kernels/single_layer_step_mma.cu, on the tensor cores. Then
the operands of the five products are rounded first, as in `precision.py`; what is added, the
biases, tanh and the loss are not.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import CudaBackend, Kernel, backend_of
from cae_raw.ops import single_layer_plan as plan
from cae_raw.ops.activation import tanh_backward
from cae_raw.ops.batch import gather
from cae_raw.ops.conv2d import (
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
)
from cae_raw.ops.loss import squared_error
from cae_raw.ops.precision import rounded
from cae_raw.ops.reduce import COLUMNS
from cae_raw.ops.registry import Op

Array = Any

PADDING = (2, 2)

# --- NumPy reference ------------------------------------------------------------------------


def _forward(
    images: Array,
    indices: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    code: Array | None = None,
    y: Array | None = None,
    *,
    scale: float,
    shift: float,
    decoder_tanh: bool = True,
    precision: str = "float32",
) -> Array:
    """The total of the squared error, float64 of shape (1,).

    Args:
        images: uint8 (M, C, H, W).
        indices: int64 (N,), each in [0, M).
        w1, b1, w2, b2: (F, C, 3, 3), (F,), (C, F, 3, 3), (C,).
        code: where h is written if it is given, (N, F, H+2, W+2).
        y: where y is written if it is given, (N, C, H, W).
    """
    x, h, out = _layers(images, indices, w1, b1, w2, b2, scale, shift, decoder_tanh, precision)
    if code is not None:
        code[...] = h
    if y is not None:
        y[...] = out
    return squared_error(out, x, scale=1.0)[0]


def _gradients(
    images: Array,
    indices: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    *,
    scale: float,
    shift: float,
    gradient_scale: float,
    sparsity: float = 0.0,
    decoder_tanh: bool = True,
    precision: str = "float32",
    out: Array | None = None,
) -> tuple[Array, Array]:
    """(total, gradients): float64 (2,), and flat (P,) in the order w1, b1, w2, b2.

    Arguments as in the forward operation. The second total is 0 where sparsity is; `out` receives
    the gradients if it is given.
    """
    x, h, y = _layers(images, indices, w1, b1, w2, b2, scale, shift, decoder_tanh, precision)
    error, dy = squared_error(y, x, scale=gradient_scale)
    if decoder_tanh:
        dy = tanh_backward(dy, y)
    window, dy_operand = w1.shape[2:], rounded(dy, precision)
    dw2 = conv2d_backward_weight(dy_operand, rounded(h, precision), kernel_size=window)
    dh = conv2d_backward_input(dy_operand, rounded(w2, precision), input_size=h.shape[2:])
    if sparsity:
        dh += w1.dtype.type(sparsity) * np.sign(h)
    dcode = tanh_backward(dh, h)
    operands = rounded(dcode, precision), rounded(x, precision)
    dw1 = conv2d_backward_weight(*operands, kernel_size=window, padding=PADDING)
    parts = (dw1, conv2d_backward_bias(dcode), dw2, conv2d_backward_bias(dy))
    found = np.concatenate([part.ravel() for part in parts])
    magnitude = np.abs(h).sum(dtype=np.float64) if sparsity else 0.0
    total = np.array([error[0], magnitude])
    if out is None:
        return total, found
    out[...] = found
    return total, out


def _layers(
    images: Array,
    indices: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    scale: float,
    shift: float,
    decoder_tanh: bool,
    precision: str,
) -> tuple[Array, Array, Array]:
    """x, h and y."""
    x = gather(images, indices, scale=scale, shift=shift).astype(w1.dtype)
    operands = rounded(x, precision), rounded(w1, precision)
    h = conv2d_forward(*operands, b1, padding=PADDING, activation="tanh")
    operands = rounded(h, precision), rounded(w2, precision)
    return x, h, conv2d_forward(*operands, b2, activation="tanh" if decoder_tanh else None)


# --- CUDA launcher --------------------------------------------------------------------------

serves = plan.serves


@functools.lru_cache(maxsize=64)
def kernel(
    entry: str,
    c: int,
    f: int,
    decoder_tanh: bool = True,
    sparse: bool = False,
    precision: str = "float32",
) -> Kernel:
    """An entry of kernels/single_layer_step.cu for C channels and F filters.

    With another precision than float32 its twin on tensor cores, which has `_mma` behind its name.
    """
    file, constants = plan.file_and_constants(
        c, f, decoder_tanh=decoder_tanh, sparse=sparse, precision=precision
    )
    return Kernel(file, entry if precision == "float32" else f"{entry}_mma", constants)


def _pieces(backend: CudaBackend, cut: plan.Cut, n: int) -> int:
    """Partial sums: one per multiprocessor, where there is so much work."""
    return min(n * cut.tiles, backend.multiprocessors)


def _sizes(images: Array, indices: Array, cut: plan.Cut, pieces: int) -> dict[str, int]:
    m, _, h, w = images.shape
    return {
        "M": m, "N": indices.shape[0], "H": h, "W": w, "R": pieces,
        "tile_h": cut.tile[0], "tile_w": cut.tile[1],
        "rows": cut.rows, "pitch": cut.pitch, **cut.code,
    }  # fmt: skip


def _cut(
    backend: CudaBackend,
    images: Array,
    n: int,
    gradients: bool,
    filters: int = plan.MAX_FILTERS,
    precision: str = "float32",
) -> plan.Cut:
    c, *size = images.shape[1:]
    limits = (backend.multiprocessors, backend.shared_limit)
    return plan.cut(n, c, (size[0], size[1]), gradients, *limits, filters, precision)


def _forward_cuda(
    images: Array,
    indices: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    code: Array | None = None,
    y: Array | None = None,
    *,
    scale: float,
    shift: float,
    decoder_tanh: bool = True,
    precision: str = "float32",
) -> Array:
    """As the reference; an index outside [0, M) gives an image of NaN, the device cannot raise."""
    backend = backend_of(images)
    f, c = w1.shape[:2]
    n = indices.shape[0]
    launched = kernel("single_layer_forward", c, f, decoder_tanh, precision=precision)
    cut = _cut(backend, images, n, False, f, precision)
    pieces = _pieces(backend, cut, n)
    totals = backend.empty((pieces, 2), np.float64)
    arguments = {
        "images": images, "indices": indices, "w1": w1, "b1": b1, "w2": w2, "b2": b2,
        "code": code, "y": y, "totals": totals, **_sizes(images, indices, cut, pieces),
        "scale": scale, "shift": shift,
    }  # fmt: skip
    backend.launch(launched, pieces, arguments, shared=cut.shared)
    nothing = backend.empty((0,))
    return _reduce(backend, launched, nothing, totals, nothing)[:1]


def _gradients_cuda(
    images: Array,
    indices: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    *,
    scale: float,
    shift: float,
    gradient_scale: float,
    sparsity: float = 0.0,
    decoder_tanh: bool = True,
    precision: str = "float32",
    out: Array | None = None,
) -> tuple[Array, Array]:
    backend = backend_of(images)
    f, c = w1.shape[:2]
    n = indices.shape[0]
    launched = kernel("single_layer_step", c, f, decoder_tanh, bool(sparsity), precision)
    cut = _cut(backend, images, n, True, f, precision)
    pieces = _pieces(backend, cut, n)
    size = sum(prod(a.shape) for a in (w1, b1, w2, b2))
    partial = backend.empty((pieces, size))
    totals = backend.empty((pieces, 2), np.float64)
    arguments = {
        "images": images, "indices": indices, "w1": w1, "b1": b1, "w2": w2, "b2": b2,
        "partial": partial, "totals": totals, **_sizes(images, indices, cut, pieces),
        "scale": scale, "shift": shift, "gradient_scale": gradient_scale, "sparsity": sparsity,
    }  # fmt: skip
    backend.launch(launched, pieces, arguments, shared=cut.shared)
    gradients = backend.empty((size,)) if out is None else out
    return _reduce(backend, launched, partial, totals, gradients), gradients


def _reduce(
    backend: CudaBackend, launched: Kernel, partial: Array, totals: Array, gradients: Array
) -> Array:
    """Add the pieces of `launched`, from the same module; returns the totals, shape (2,)."""
    total = backend.empty((2,), np.float64)
    arguments = {
        "partial": partial, "totals": totals, "gradients": gradients, "total": total,
        "R": totals.shape[0], "P": gradients.size,
    }  # fmt: skip
    entry = "single_layer_reduce" + "_mma" * launched.entry.endswith("_mma")
    reducing = Kernel(launched.file, entry, launched.constants)
    backend.launch(reducing, max(1, plan.ceil_div(gradients.size, COLUMNS)), arguments)
    return total


single_layer_forward = Op("single_layer_forward", _forward, _forward_cuda)
single_layer_gradients = Op("single_layer_gradients", _gradients, _gradients_cuda)


class SingleLayerCuda:
    """The two operations for a model on a GPU: what `SingleLayerStep` is on the CPU.

    Args:
        scale, shift: from bytes to the model's range of values.
        decoder_tanh: whether the output is a tanh's.

    Attributes:
        precision: of the products: float32, tf32 or tf32x3. Float32 until somebody measures on a
            GPU which is the fastest.
    """

    def __init__(self, scale: float, shift: float, decoder_tanh: bool = True) -> None:
        self.model: dict[str, Any] = {
            "scale": scale, "shift": shift, "decoder_tanh": decoder_tanh,
        }  # fmt: skip
        self.precision = "float32"

    def gradients(
        self,
        images: Array,
        indices: Array,
        params: Mapping[str, Array],
        out: Array,
        scale: float,
        sparsity_scale: float = 0.0,
    ) -> Array:
        """The sum of squared errors over images[indices], shape (1,).

        The gradient of scale / 2 times the sum, plus sparsity_scale times the sum of |code|, is
        written into the flat vector `out`.
        """
        total, _ = single_layer_gradients(
            images, indices, *params.values(), **self.model, precision=self.precision,
            gradient_scale=scale, sparsity=sparsity_scale, out=out,
        )  # fmt: skip
        return total[:1]

    def squared_error(
        self,
        images: Array,
        indices: Array,
        params: Mapping[str, Array],
        y: Array | None = None,
        code: Array | None = None,
    ) -> Array:
        """The sum alone; y (N, C, H, W) receives the reconstructions, `code` the codes, if given.

        The code is (N, F, H+2, W+2).
        """
        w1, b1, w2, b2 = params.values()
        return single_layer_forward(
            images, indices, w1, b1, w2, b2, code, y, **self.model, precision=self.precision
        )
