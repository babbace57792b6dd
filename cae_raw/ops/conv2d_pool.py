"""Convolution with 2x2 max-pooling behind it, the map between the two never in memory.

    forward:  y, mask = maxpool(act(conv2d(x, w, b)))           windows of 2x2, side by side
    backward: d = mask_scatter(dy, mask), then the gradients of conv2d from d

Of four values that the convolution makes one is written, and a byte that says which; the backward
pass reads the same and no more. Where the activation is ReLU its derivative needs only y: the value
that was chosen is y, and what was not chosen has no gradient.
Shapes: x (N, C, H, W), w (O, C, KH, KW), b (O,), y and mask (N, O, OH, OW) with the pooled size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import activation as act
from cae_raw.ops import conv2d, pool2d
from cae_raw.ops import conv2d_plan as plan
from cae_raw.ops.registry import Op
from cae_raw.ops.windows import Pair, output_size

Array = Any

WINDOW: dict[str, Pair] = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}

# --- composed of the two operations: the reference, and what a GPU does without a tiled kernel ----


def _forward(
    x: Array,
    w: Array,
    b: Array,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    activation: str | None = None,
) -> tuple[Array, Array]:
    """y (N, O, OH, OW) and its uint8 mask: maxpool_forward of conv2d_forward."""
    large = conv2d.conv2d_forward(x, w, b, stride=stride, padding=padding, activation=activation)
    y, mask = pool2d.maxpool_forward(large, **WINDOW)
    return y, mask


def _unpooled(small: Array, mask: Array) -> Array:
    size = (2 * small.shape[2], 2 * small.shape[3])
    return pool2d.mask_scatter(small, mask, size=size, **WINDOW)


def _backward_input(
    dy: Array,
    mask: Array,
    w: Array,
    *,
    input_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    gate: Array | None = None,
) -> Array:
    """dx (N, C, *input_size) of the gradient dy (N, O, OH, OW) in front of the activation.

    `gate` as for conv2d_backward_input.
    """
    window: dict[str, Any] = {"input_size": input_size, "stride": stride, "padding": padding}
    return conv2d.conv2d_backward_input(_unpooled(dy, mask), w, **window, gate=gate)


def _backward_weight(
    dy: Array,
    mask: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Array | None = None,
) -> Array:
    """dw (O, C, KH, KW) of the same dy; overwrites `out`."""
    window: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return conv2d.conv2d_backward_weight(_unpooled(dy, mask), x, **window, out=out)


# --- CUDA launcher --------------------------------------------------------------------------


def _tiled(what: str, prefix: str, w: tuple[int, ...], stride: Pair) -> Kernel | None:
    """The kernel for weights of shape w, or None where its tiles do not fit or split windows."""
    o, c, kh, kw = w
    entry = f"conv2d_pool_{what}"
    kernel = conv2d.tiled(entry, prefix, c, o, (kh, kw), stride, "conv2d_pool")
    return None if kernel is None or kernel.constants["FWD_PIXELS"] % 2 else kernel


def _forward_cuda(
    x: Array,
    w: Array,
    b: Array,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    activation: str | None = None,
) -> tuple[Array, Array]:
    kernel = _tiled("forward", "FWD", w.shape, stride)
    if kernel is None:
        return _forward(x, w, b, stride=stride, padding=padding, activation=activation)
    backend = backend_of(x)
    n, (o, _, *taps) = len(x), w.shape
    oh, ow = (
        output_size(output_size(*axis), 2, 2, 0)
        for axis in zip(x.shape[2:], taps, stride, padding, strict=True)
    )
    y, mask = backend.empty((n, o, oh, ow)), backend.empty((n, o, oh, ow), np.uint8)
    covered = (2 * oh, 2 * ow)  # what is in a window
    # Both columns of a window in one warp.
    grid, tile = plan.tiles(kernel.constants, "FWD", n, covered, (taps[0], taps[1]), stride, 2)
    arguments = {
        "x": x, "w": w, "b": b, "y": y, "mask": mask, **conv2d.sizes(x.shape, y.shape, padding),
        **tile, "activation": act.code_of(activation),
    }  # fmt: skip
    backend.launch(kernel, grid, arguments)
    return y, mask


def _backward_input_cuda(
    dy: Array,
    mask: Array,
    w: Array,
    *,
    input_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    gate: Array | None = None,
) -> Array:
    kernel = _tiled("backward_input", "INP", w.shape, stride)
    if kernel is None:
        window: dict[str, Any] = {"input_size": input_size, "stride": stride, "padding": padding}
        return _backward_input(dy, mask, w, **window, gate=gate)
    backend = backend_of(dy)
    _, c, kh, kw = w.shape
    dx = backend.empty((len(dy), c, *input_size))
    grid, tile = plan.tiles(kernel.constants, "INP", len(dy), input_size, (kh, kw), (1, 1))
    arrays = {"dy": dy, "mask": mask, "w": w, "gate": gate, "dx": dx}
    backend.launch(kernel, grid, {**arrays, **conv2d.sizes(dx.shape, dy.shape, padding), **tile})
    return dx


def _backward_weight_cuda(
    dy: Array,
    mask: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Array | None = None,
) -> Array:
    shape = (dy.shape[1], x.shape[1], *kernel_size)
    kernel = _tiled("backward_weight", "WGT", shape, stride)
    if kernel is None:
        window: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        return _backward_weight(dy, mask, x, **window, out=out)
    dw = backend_of(dy).empty(shape) if out is None else out
    arrays, shapes = {"dy": dy, "mask": mask, "x": x}, conv2d.sizes(x.shape, dy.shape, padding)
    covered = (2 * dy.shape[2], 2 * dy.shape[3])
    return conv2d.sum_of_pieces(kernel, arrays, shapes, covered, dw)


conv2d_pool_forward = Op("conv2d_pool_forward", _forward, _forward_cuda)
conv2d_pool_backward_input = Op("conv2d_pool_backward_input", _backward_input, _backward_input_cuda)
conv2d_pool_backward_weight = Op(
    "conv2d_pool_backward_weight", _backward_weight, _backward_weight_cuda
)
