"""Convolution of a map that 2x2 max-unpooling makes, that map never in memory.

    forward:  y = act(conv2d(mask_scatter(x, mask), w, b))      windows of 2x2, side by side
    backward: dx = mask_gather(the gradient of conv2d's input, mask), dw = conv2d's of the same

Three of four values that the convolution reads are zeros that unpooling put there; here they are
put where they are read, and of the input's gradient only what the mask selects is written.
Shapes: x and mask (N, C, H, W), w (O, C, KH, KW), b (O,), y (N, O, OH, OW). `size` is that of the
unpooled map: 2H or 2H + 1 times 2W or 2W + 1.
"""

from __future__ import annotations

from typing import Any

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.ops import activation as act
from cae_raw.ops import conv2d, pool2d
from cae_raw.ops import conv2d_plan as plan
from cae_raw.ops.conv2d_pool import WINDOW
from cae_raw.ops.registry import Op
from cae_raw.ops.windows import Pair, output_size

Array = Any

# --- composed of the two operations: the reference, and what a GPU does without a tiled kernel ----


def _forward(
    x: Array,
    mask: Array,
    w: Array,
    b: Array,
    *,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    activation: str | None = None,
) -> Array:
    """y (N, O, OH, OW): conv2d_forward of mask_scatter."""
    large = pool2d.mask_scatter(x, mask, size=size, **WINDOW)
    return conv2d.conv2d_forward(large, w, b, stride=stride, padding=padding, activation=activation)


def _backward_input(
    dy: Array,
    mask: Array,
    w: Array,
    *,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    gate: Array | None = None,
) -> Array:
    """dx (N, C, H, W) of dy (N, O, OH, OW); `gate`, of dx's shape, as for conv2d_backward_input."""
    large = conv2d.conv2d_backward_input(dy, w, input_size=size, stride=stride, padding=padding)
    dx = pool2d.mask_gather(large, mask, **WINDOW)
    return dx if gate is None else act.relu_backward(dx, gate)


def _backward_weight(
    dy: Array,
    x: Array,
    mask: Array,
    *,
    size: Pair,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Array | None = None,
) -> Array:
    """dw (O, C, KH, KW) of dy (N, O, OH, OW) and x (N, C, H, W); overwrites `out`."""
    large = pool2d.mask_scatter(x, mask, size=size, **WINDOW)
    window: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return conv2d.conv2d_backward_weight(dy, large, **window, out=out)


# --- CUDA launcher --------------------------------------------------------------------------


def _tiled(what: str, prefix: str, w: tuple[int, ...], stride: Pair) -> Kernel | None:
    """The kernel for weights of shape w, or None where its tiles do not fit or split windows."""
    o, c, kh, kw = w
    entry = f"unpool_conv2d_{what}"
    kernel = conv2d.tiled(entry, prefix, c, o, (kh, kw), stride, "unpool_conv2d")
    return None if kernel is None or kernel.constants["INP_PIXELS"] % 2 else kernel


def _forward_cuda(
    x: Array,
    mask: Array,
    w: Array,
    b: Array,
    *,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    activation: str | None = None,
) -> Array:
    kernel = _tiled("forward", "FWD", w.shape, stride)
    if kernel is None:
        window: dict[str, Any] = {"size": size, "stride": stride, "padding": padding}
        return _forward(x, mask, w, b, **window, activation=activation)
    backend = backend_of(x)
    o, _, kh, kw = w.shape
    oh = output_size(size[0], kh, stride[0], padding[0])
    ow = output_size(size[1], kw, stride[1], padding[1])
    y = backend.empty((len(x), o, oh, ow))
    grid, tile = plan.tiles(kernel.constants, "FWD", len(x), (oh, ow), (kh, kw), stride)
    arguments = {
        "x": x, "mask": mask, "w": w, "b": b, "y": y, **conv2d.sizes(x.shape, y.shape, padding),
        **tile, "activation": act.code_of(activation),
    }  # fmt: skip
    backend.launch(kernel, grid, arguments)
    return y


def _backward_input_cuda(
    dy: Array,
    mask: Array,
    w: Array,
    *,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    gate: Array | None = None,
) -> Array:
    kernel = _tiled("backward_input", "INP", w.shape, stride)
    if kernel is None:
        window: dict[str, Any] = {"size": size, "stride": stride, "padding": padding}
        return _backward_input(dy, mask, w, **window, gate=gate)
    backend = backend_of(dy)
    dx = backend.empty(mask.shape)
    covered = (2 * dx.shape[2], 2 * dx.shape[3])  # what is in a window
    grid, tile = plan.tiles(kernel.constants, "INP", len(dy), covered, w.shape[2:], (1, 1))
    arrays = {"dy": dy, "mask": mask, "w": w, "gate": gate, "dx": dx}
    backend.launch(kernel, grid, {**arrays, **conv2d.sizes(dx.shape, dy.shape, padding), **tile})
    return dx


def _backward_weight_cuda(
    dy: Array,
    x: Array,
    mask: Array,
    *,
    size: Pair,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Array | None = None,
) -> Array:
    shape = (dy.shape[1], x.shape[1], *kernel_size)
    kernel = _tiled("backward_weight", "WGT", shape, stride)
    if kernel is None:
        window: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
        return _backward_weight(dy, x, mask, size=size, **window, out=out)
    dw = backend_of(dy).empty(shape) if out is None else out
    arrays, shapes = {"dy": dy, "x": x, "mask": mask}, conv2d.sizes(x.shape, dy.shape, padding)
    return conv2d.sum_of_pieces(kernel, arrays, shapes, dy.shape[2:], dw)


unpool_conv2d_forward = Op("unpool_conv2d_forward", _forward, _forward_cuda)
unpool_conv2d_backward_input = Op(
    "unpool_conv2d_backward_input", _backward_input, _backward_input_cuda
)
unpool_conv2d_backward_weight = Op(
    "unpool_conv2d_backward_weight", _backward_weight, _backward_weight_cuda
)
