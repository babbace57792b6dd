"""Two-dimensional convolution (cross-correlation, as in every deep-learning framework).

    y[n,o,i,j] = b[o] + sum over c,p,q of w[o,c,p,q] * x[n,c, i*SH + p - PH, j*SW + q - PW]

with x read as 0 outside its borders. Shapes: x (N, C, H, W), w (O, C, KH, KW), b (O,),
y (N, O, OH, OW) with OH = (H + 2*PH - KH) // SH + 1 and OW alike.

The NumPy reference is in `conv2d_reference`.
"""

from __future__ import annotations

import functools
from typing import Any

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import activation as act
from cae_raw.ops import conv2d_plan as plan
from cae_raw.ops import conv2d_reference as reference
from cae_raw.ops import reduce
from cae_raw.ops.registry import Op
from cae_raw.ops.windows import Pair, output_size

Array = Any


# --- CUDA launcher --------------------------------------------------------------------------

DIRECT = {"THREADS": 256}
BIAS = Kernel("conv2d_direct", "conv2d_backward_bias", DIRECT)
FORWARD_DIRECT = Kernel("conv2d_direct", "conv2d_forward_direct", DIRECT)
INPUT_DIRECT = Kernel("conv2d_direct", "conv2d_backward_input_direct", DIRECT)
WEIGHT_DIRECT = Kernel("conv2d_direct", "conv2d_backward_weight_direct", DIRECT)
BIAS_PIECE = 4096  # elements behind one partial sum of the bias gradient


@functools.lru_cache(maxsize=256)
def tiled(
    entry: str, prefix: str, c: int, o: int, kernel_size: Pair, stride: Pair, file: str = "conv2d"
) -> Kernel | None:
    """The tiled kernel of a layer, or None where its window is too large for a tile."""
    constants = plan.constants(c, o, kernel_size, stride)
    if constants is None:
        return None
    return Kernel(file, entry, constants, threads=f"{prefix}_THREADS")


def sizes(x: tuple[int, ...], y: tuple[int, ...], padding: Pair) -> dict[str, int]:
    """What tiled kernels are told of the shapes of their input and output, and of the padding."""
    return {
        "N": x[0], "H": x[2], "W": x[3], "OH": y[2], "OW": y[3], "PH": padding[0], "PW": padding[1],
    }  # fmt: skip


def sum_of_pieces(
    kernel: Kernel, arrays: dict[str, Array], shapes: dict[str, int], size: Pair, dw: Array
) -> Array:
    """Run a tiled backward_weight kernel over gradients of `size`, in pieces, and add these."""
    backend = backend_of(dw)
    constants = kernel.constants
    taps = (constants["WGT_TAPS_H"], constants["WGT_TAPS_W"])
    stride = (constants["SH"], constants["SW"])
    tiles, tile = plan.tiles(constants, "WGT", shapes["N"], size, taps, stride)
    units = plan.weight_units(constants)
    pieces = max(1, min(tiles, plan.BLOCKS_OF_A_SUM // units))
    partial = dw if pieces == 1 else backend.empty((pieces, *dw.shape))
    arguments = {**arrays, "partial": partial, **shapes, **tile, "R": pieces}
    backend.launch(kernel, pieces * units, arguments)
    if pieces > 1:
        reduce.add_rows(backend, partial, pieces, dw)
    return dw


def _direct_sizes(
    x: tuple[int, ...], y: tuple[int, ...], kernel_size: Pair, stride: Pair, padding: Pair
) -> dict[str, int]:
    window = dict(zip(("KH", "KW", "SH", "SW"), (*kernel_size, *stride), strict=True))
    sizes = {"N": x[0], "C": x[1], "H": x[2], "W": x[3], "O": y[1], "OH": y[2], "OW": y[3]}
    return {**sizes, **window, "PH": padding[0], "PW": padding[1]}


def _forward_cuda(
    x: Array,
    w: Array,
    b: Array,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    activation: str | None = None,
) -> Array:
    backend = backend_of(x)
    o, c, kh, kw = w.shape
    oh = output_size(x.shape[2], kh, stride[0], padding[0])
    ow = output_size(x.shape[3], kw, stride[1], padding[1])
    y = backend.empty((x.shape[0], o, oh, ow))
    arrays = {"x": x, "w": w, "b": b, "y": y}
    epilogue = {"activation": act.code_of(activation)}
    kernel = tiled("conv2d_forward", "FWD", c, o, (kh, kw), stride)
    if kernel is None:
        direct = _direct_sizes(x.shape, y.shape, (kh, kw), stride, padding)
        grid = backend.blocks(FORWARD_DIRECT, y.size)
        backend.launch(FORWARD_DIRECT, grid, {**arrays, **direct, **epilogue})
        return y
    grid, tile = plan.tiles(kernel.constants, "FWD", x.shape[0], (oh, ow), (kh, kw), stride)
    backend.launch(kernel, grid, {**arrays, **sizes(x.shape, y.shape, padding), **tile, **epilogue})
    return y


def _backward_input_cuda(
    dy: Array,
    w: Array,
    *,
    input_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    gate: Array | None = None,
) -> Array:
    backend = backend_of(dy)
    o, c, kh, kw = w.shape
    dx = backend.empty((dy.shape[0], c, *input_size))
    kernel = tiled("conv2d_backward_input", "INP", c, o, (kh, kw), stride)
    if kernel is None:
        direct = _direct_sizes(dx.shape, dy.shape, (kh, kw), stride, padding)
        arrays = {"dy": dy, "w": w, "dx": dx}
        backend.launch(INPUT_DIRECT, backend.blocks(INPUT_DIRECT, dx.size), {**arrays, **direct})
        return dx if gate is None else act.relu_backward(dx, gate)
    grid, tile = plan.tiles(kernel.constants, "INP", dy.shape[0], input_size, (kh, kw), (1, 1))
    arrays = {"dy": dy, "w": w, "gate": gate, "dx": dx}
    backend.launch(kernel, grid, {**arrays, **sizes(dx.shape, dy.shape, padding), **tile})
    return dx


def _backward_weight_cuda(
    dy: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Array | None = None,
) -> Array:
    backend = backend_of(dy)
    o, c = dy.shape[1], x.shape[1]
    dw = backend.empty((o, c, *kernel_size)) if out is None else out
    kernel = tiled("conv2d_backward_weight", "WGT", c, o, kernel_size, stride)
    if kernel is None:
        direct = _direct_sizes(x.shape, dy.shape, kernel_size, stride, padding)
        backend.launch(WEIGHT_DIRECT, dw.size, {"dy": dy, "x": x, "dw": dw, **direct})
        return dw
    shapes = sizes(x.shape, dy.shape, padding)
    return sum_of_pieces(kernel, {"dy": dy, "x": x}, shapes, dy.shape[2:], dw)


def _backward_bias_cuda(dy: Array, *, out: Array | None = None) -> Array:
    backend = backend_of(dy)
    n, o, oh, ow = dy.shape
    db = backend.empty((o,)) if out is None else out
    # As many pieces as fill a GPU, each of at least BIAS_PIECE elements.
    wanted = max(1, min(n * oh * ow // BIAS_PIECE, 2 * plan.BLOCKS_OF_A_SUM // max(1, o)))
    piece_size = max(1, -(-n * oh * ow // wanted))
    pieces = max(1, -(-n * oh * ow // piece_size))
    partial = db if pieces == 1 else backend.empty((pieces, o))
    arguments = {
        "dy": dy, "partial": partial,
        "N": n, "O": o, "P": oh * ow, "R": pieces, "piece_size": piece_size,
    }  # fmt: skip
    backend.launch(BIAS, pieces * o, arguments)
    if pieces > 1:
        reduce.add_rows(backend, partial, pieces, db)
    return db


conv2d_forward = Op("conv2d_forward", reference.forward, _forward_cuda)
conv2d_backward_input = Op("conv2d_backward_input", reference.backward_input, _backward_input_cuda)
conv2d_backward_weight = Op(
    "conv2d_backward_weight", reference.backward_weight, _backward_weight_cuda
)
conv2d_backward_bias = Op("conv2d_backward_bias", reference.backward_bias, _backward_bias_cuda)
