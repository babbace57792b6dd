"""Two-dimensional convolution (cross-correlation, as in every deep-learning framework).

    y[n,o,i,j] = b[o] + sum over c,p,q of w[o,c,p,q] * x[n,c, i*SH + p - PH, j*SW + q - PW]

with x read as 0 outside its borders. Shapes: x (N, C, H, W), w (O, C, KH, KW), b (O,),
y (N, O, OH, OW) with OH = (H + 2*PH - KH) // SH + 1 and OW alike.

The NumPy reference turns each product into a matrix product over shifted copies of one of the two
maps. Shifting x gives a matrix with C*KH*KW rows, shifting y one with O*KH*KW rows; the products
need the same arithmetic either way, so the narrower map is the one to copy. For a decoder that
goes from 32 channels to 3 that is a tenfold saving in memory traffic.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import activation as act
from cae_raw.ops import conv2d_plan as plan
from cae_raw.ops import reduce, scratch
from cae_raw.ops.registry import Op
from cae_raw.ops.windows import Pair, output_size, shifted, unshifted

Array = Any


def _shifts_of_x(kernel_size: Pair, padding: Pair) -> tuple[range, range]:
    """Where output position 0 reads x, for each tap of the window."""
    (kh, kw), (ph, pw) = kernel_size, padding
    return range(-ph, kh - ph), range(-pw, kw - pw)


def _shifts_of_y(kernel_size: Pair, padding: Pair) -> tuple[range, range]:
    """Which output position input position 0 contributes to, for each tap (stride 1)."""
    (kh, kw), (ph, pw) = kernel_size, padding
    return range(ph, ph - kh, -1), range(pw, pw - kw, -1)


def _copy_y(w_shape: tuple[int, ...], stride: Pair) -> bool:
    """True when the y side is the narrower one to copy; strides above 1 need the x side."""
    return stride == (1, 1) and w_shape[0] < w_shape[1]


def _rows_of_y(w: Array) -> Array:
    """w (O, C, KH, KW) as the matrix (O*KH*KW, C) that goes with copies of y."""
    return w.transpose(0, 2, 3, 1).reshape(-1, w.shape[1])


def _product(matrix: Array, maps: Array) -> Array:
    """matrix (R, K) times each of maps (N, K, L), into reused memory (N, R, L)."""
    out = scratch.empty((len(maps), len(matrix), maps.shape[2]), maps.dtype)
    return np.matmul(matrix, maps, out=out)


# --- NumPy reference ------------------------------------------------------------------------


def _forward(
    x: Array,
    w: Array,
    b: Array,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    activation: str | None = None,
) -> Array:
    """Convolve x (N, C, H, W) with w (O, C, KH, KW), add b (O,), apply the activation.

    `activation` is None, "relu" or "tanh". Returns y (N, O, OH, OW).
    """
    n, c, h, width = x.shape
    o, _, kh, kw = w.shape
    oh = output_size(h, kh, stride[0], padding[0])
    ow = output_size(width, kw, stride[1], padding[1])
    if _copy_y(w.shape, stride):
        contributions = _product(_rows_of_y(w), x.reshape(n, c, h * width))
        contributions = contributions.reshape(n, o, kh, kw, h, width)
        y = unshifted(contributions, _shifts_of_y((kh, kw), padding), stride, (oh, ow))
    else:
        s = shifted(x, _shifts_of_x((kh, kw), padding), stride, (oh, ow))
        s = s.reshape(n, c * kh * kw, oh * ow)
        matrix, y = w.reshape(o, c * kh * kw), scratch.empty((n, o, oh * ow), x.dtype)
        # Image by image, so that each map is still in the cache when its bias is added.
        for shifted_x, y_image in zip(s, y, strict=True):
            np.matmul(matrix, shifted_x, out=y_image)
            y_image += b[:, None]
            act.apply_in_place(y_image, activation)
        return y.reshape(n, o, oh, ow)
    y += b[:, None, None]
    return act.apply_in_place(y, activation)


def _backward_input(
    dy: Array, w: Array, *, input_size: Pair, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> Array:
    """dx (N, C, *input_size): what each input got from every window that read it."""
    n, o, oh, ow = dy.shape
    _, c, kh, kw = w.shape
    if _copy_y(w.shape, stride):
        s = shifted(dy, _shifts_of_y((kh, kw), padding), stride, input_size)
        s = s.reshape(n, o * kh * kw, input_size[0] * input_size[1])
        return _product(_rows_of_y(w).T, s).reshape(n, c, *input_size)
    s = _product(w.reshape(o, c * kh * kw).T, dy.reshape(n, o, oh * ow))
    s = s.reshape(n, c, kh, kw, oh, ow)
    return unshifted(s, _shifts_of_x((kh, kw), padding), stride, input_size)


def _backward_weight(
    dy: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Array | None = None,
) -> Array:
    """dw[o,c,p,q] = sum over n,i,j of dy[n,o,i,j] * x at the tap (p, q). Overwrites `out`."""
    n, o, oh, ow = dy.shape
    _, c, h, w = x.shape
    shape = (o, c, *kernel_size)
    taps = kernel_size[0] * kernel_size[1]
    dw = np.empty(shape, dtype=x.dtype) if out is None else out
    if _copy_y(shape, stride):
        s = shifted(dy, _shifts_of_y(kernel_size, padding), stride, (h, w))
        s = s.reshape(n, o * taps, h * w)
        per_image = np.matmul(s, x.reshape(n, c, h * w).transpose(0, 2, 1))
        total = per_image.sum(axis=0).reshape(o, *kernel_size, c)
        dw[...] = total.transpose(0, 3, 1, 2)
    else:
        s = shifted(x, _shifts_of_x(kernel_size, padding), stride, (oh, ow))
        s = s.reshape(n, c * taps, oh * ow)
        per_image = np.matmul(dy.reshape(n, o, oh * ow), s.transpose(0, 2, 1))
        dw[...] = per_image.sum(axis=0).reshape(shape)
    return dw


def _backward_bias(dy: Array, *, out: Array | None = None) -> Array:
    """db[o] = sum of dy over images and positions. dy (N, O, OH, OW); overwrites `out` (O,)."""
    return np.sum(dy, axis=(0, 2, 3), out=out)


# --- CUDA launcher --------------------------------------------------------------------------

DIRECT = {"THREADS": 256}
BIAS = Kernel("conv2d_direct", "conv2d_backward_bias", DIRECT)
FORWARD_DIRECT = Kernel("conv2d_direct", "conv2d_forward_direct", DIRECT)
INPUT_DIRECT = Kernel("conv2d_direct", "conv2d_backward_input_direct", DIRECT)
WEIGHT_DIRECT = Kernel("conv2d_direct", "conv2d_backward_weight_direct", DIRECT)
BIAS_PIECE = 4096  # elements behind one partial sum of the bias gradient


@functools.lru_cache(maxsize=256)
def _tiled(
    entry: str, prefix: str, c: int, o: int, kernel_size: Pair, stride: Pair
) -> Kernel | None:
    """The tiled kernel of a layer, or None where its window is too large for a tile."""
    constants = plan.constants(c, o, kernel_size, stride)
    if constants is None:
        return None
    return Kernel("conv2d", entry, constants, threads=f"{prefix}_THREADS")


def _sizes(x: tuple[int, ...], y: tuple[int, ...]) -> dict[str, int]:
    return {"N": x[0], "H": x[2], "W": x[3], "OH": y[2], "OW": y[3]}


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
    kernel = _tiled("conv2d_forward", "FWD", c, o, (kh, kw), stride)
    if kernel is None:
        sizes = _direct_sizes(x.shape, y.shape, (kh, kw), stride, padding)
        grid = backend.blocks(FORWARD_DIRECT, y.size)
        backend.launch(FORWARD_DIRECT, grid, {**arrays, **sizes, **epilogue})
        return y
    grid, tile = plan.tiles(kernel.constants, "FWD", x.shape[0], (oh, ow), (kh, kw), stride)
    pad = {"PH": padding[0], "PW": padding[1]}
    backend.launch(kernel, grid, {**arrays, **_sizes(x.shape, y.shape), **pad, **tile, **epilogue})
    return y


def _backward_input_cuda(
    dy: Array, w: Array, *, input_size: Pair, stride: Pair = (1, 1), padding: Pair = (0, 0)
) -> Array:
    backend = backend_of(dy)
    o, c, kh, kw = w.shape
    dx = backend.empty((dy.shape[0], c, *input_size))
    arrays = {"dy": dy, "w": w, "dx": dx}
    kernel = _tiled("conv2d_backward_input", "INP", c, o, (kh, kw), stride)
    if kernel is None:
        sizes = _direct_sizes(dx.shape, dy.shape, (kh, kw), stride, padding)
        backend.launch(INPUT_DIRECT, backend.blocks(INPUT_DIRECT, dx.size), {**arrays, **sizes})
        return dx
    grid, tile = plan.tiles(kernel.constants, "INP", dy.shape[0], input_size, (kh, kw), (1, 1))
    pad = {"PH": padding[0], "PW": padding[1]}
    backend.launch(kernel, grid, {**arrays, **_sizes(dx.shape, dy.shape), **pad, **tile})
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
    kernel = _tiled("conv2d_backward_weight", "WGT", c, o, kernel_size, stride)
    if kernel is None:
        sizes = _direct_sizes(x.shape, dy.shape, kernel_size, stride, padding)
        backend.launch(WEIGHT_DIRECT, dw.size, {"dy": dy, "x": x, "dw": dw, **sizes})
        return dw
    constants = kernel.constants
    taps = (constants["WGT_TAPS_H"], constants["WGT_TAPS_W"])
    tiles, tile = plan.tiles(constants, "WGT", x.shape[0], dy.shape[2:], taps, stride)
    units = plan.weight_units(constants)
    pieces = max(1, min(tiles, plan.BLOCKS_OF_A_SUM // units))
    partial = dw if pieces == 1 else backend.empty((pieces, *dw.shape))
    arguments = {
        "dy": dy, "x": x, "partial": partial, **_sizes(x.shape, dy.shape),
        "PH": padding[0], "PW": padding[1], **tile, "R": pieces,
    }  # fmt: skip
    backend.launch(kernel, pieces * units, arguments)
    if pieces > 1:
        reduce.add_rows(backend, partial, pieces, dw)
    return dw


def _backward_bias_cuda(dy: Array, *, out: Array | None = None) -> Array:
    backend = backend_of(dy)
    n, o, oh, ow = dy.shape
    db = backend.empty((o,)) if out is None else out
    # As many pieces as fill a GPU, each of at least BIAS_PIECE elements.
    wanted = max(1, min(n * oh * ow // BIAS_PIECE, 2 * plan.BLOCKS_OF_A_SUM // o))
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


conv2d_forward = Op("conv2d_forward", _forward, _forward_cuda)
conv2d_backward_input = Op("conv2d_backward_input", _backward_input, _backward_input_cuda)
conv2d_backward_weight = Op("conv2d_backward_weight", _backward_weight, _backward_weight_cuda)
conv2d_backward_bias = Op("conv2d_backward_bias", _backward_bias, _backward_bias_cuda)
