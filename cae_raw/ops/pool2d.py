"""Max-pooling with a mask, and the two ways to move values through the mask.

    maxpool_forward:  y[n,c,i,j] = max over the window at (i*SH - PH, j*SW - PW) of x
                      mask[n,c,i,j] = p*KW + q of the first maximum inside that window
    mask_scatter:     large[n,c,h,w] = sum of small[n,c,i,j] over windows whose mask points there
    mask_gather:      small[n,c,i,j] = large[n,c] at the position mask[n,c,i,j] points at

Pooling's backward pass and unpooling's forward pass are `mask_scatter`; unpooling's backward pass
is `mask_gather`. Padding is never chosen as a maximum, so a mask always points inside the map. The
mask is one byte, hence a window has at most 256 taps. NaN wins over every number, as in NumPy.
Shapes: x, large (N, C, H, W); y, small, mask (N, C, OH, OW), see `windows.output_size`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.errors import InputError
from cae_raw.ops import scratch
from cae_raw.ops.registry import Op
from cae_raw.ops.windows import Pair, output_size, overlap

Array = Any

# --- NumPy reference ------------------------------------------------------------------------


def _maxpool_forward(
    x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> tuple[Array, Array]:
    """The maxima y (N, C, OH, OW) and the uint8 mask of the same shape.

    The padding must be at most half the window, so that every window touches the map.
    """
    if kernel_size == stride == (2, 2) and padding == (0, 0):
        y, mask = _maxpool_of_pairs(x)
        if not np.isnan(y.max(initial=0)):
            return y, mask
    _, _, h, w = x.shape
    oh = output_size(h, kernel_size[0], stride[0], padding[0])
    ow = output_size(w, kernel_size[1], stride[1], padding[1])
    top = np.arange(oh) * stride[0] - padding[0]
    left = np.arange(ow) * stride[1] - padding[1]
    # Start from the first tap of each window that lies on the map.
    p, q = np.maximum(-top, 0), np.maximum(-left, 0)
    y = np.ascontiguousarray(x[:, :, (top + p)[:, None], left + q])  # indexing permutes the strides
    mask = np.empty(y.shape, dtype=np.uint8)
    mask[...] = p[:, None] * kernel_size[1] + q
    for tap, small, large in _taps(kernel_size, stride, padding, (oh, ow), (h, w)):
        best, candidate = y[small], x[large]
        # NaN wins once and then stays: a comparison with NaN is False.
        wins = ~(candidate <= best) & (best == best)
        np.copyto(best, candidate, where=wins)
        np.copyto(mask[small], np.uint8(tap), where=wins)
    return y, mask


def _maxpool_of_pairs(x: Array) -> tuple[Array, Array]:
    """The same for windows of 2x2 side by side, eight times as fast; no NaN may be among x.

    The maximum of each pair in a row, then of each pair of those; the mask alike.
    """
    n, c, h, w = x.shape
    oh, ow = output_size(h, 2, 2, 0), output_size(w, 2, 2, 0)
    left, right = x[:, :, : 2 * oh, 0 : 2 * ow : 2], x[:, :, : 2 * oh, 1 : 2 * ow : 2]
    best = np.maximum(left, right, out=scratch.empty((n, c, 2 * oh, ow), x.dtype))
    column = np.greater(right, left, out=scratch.empty(best.shape, bool)).view(np.uint8)
    above, below = best[:, :, 0::2], best[:, :, 1::2]
    y = np.maximum(above, below, out=scratch.empty((n, c, oh, ow), x.dtype))
    mask = np.greater(below, above, out=scratch.empty(y.shape, bool)).view(np.uint8)
    # 2 * row + (the column in that row): the row below's where mask is 1, or else the row above's.
    of_above, of_below = column[:, :, 0::2], column[:, :, 1::2]
    chosen = of_above ^ ((of_above ^ of_below) & mask)
    mask += mask
    mask += chosen
    return y, mask


def _mask_scatter(
    small: Array,
    mask: Array,
    *,
    size: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
) -> Array:
    """large (N, C, *size): each value of small (N, C, OH, OW) added where its mask points."""
    n, c, oh, ow = small.shape
    large = scratch.zeros((n, c, *size), small.dtype)
    apart = stride[0] >= kernel_size[0] and stride[1] >= kernel_size[1]
    if apart and _all_inside(mask, size, kernel_size, stride, padding):
        for i, where in _positions(mask, size, kernel_size, stride):
            large[i].reshape(-1)[where] = small[i]
        return large
    for tap, at_small, at_large in _taps(kernel_size, stride, padding, (oh, ow), size):
        large[at_large] += np.where(mask[at_small] == tap, small[at_small], 0)
    return large


def _mask_gather(
    large: Array, mask: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Array:
    """small (N, C, OH, OW): the value of large (N, C, H, W) where each mask points."""
    size = large.shape[2:]
    if _all_inside(mask, size, kernel_size, stride, padding):
        small = scratch.empty(mask.shape, large.dtype)
        for i, where in _positions(mask, size, kernel_size, stride):
            # Clipping changes nothing, the positions being inside; checking would cost a copy.
            np.take(large[i], where, out=small[i], mode="clip")
        return small
    small = scratch.zeros(mask.shape, large.dtype)
    for tap, at_small, at_large in _taps(kernel_size, stride, padding, mask.shape[2:], size):
        np.copyto(small[at_small], large[at_large], where=mask[at_small] == tap)
    return small


def _all_inside(mask: Array, size: Pair, kernel_size: Pair, stride: Pair, padding: Pair) -> bool:
    """Whether it takes no look at single elements to know that every mask points into the map."""
    fits = all(
        (n - 1) * s + k <= large
        for n, s, k, large in zip(mask.shape[2:], stride, kernel_size, size, strict=True)
    )
    taps = kernel_size[0] * kernel_size[1]
    return fits and padding == (0, 0) and int(mask.max(initial=0)) < taps


def _positions(
    mask: Array, size: Pair, kernel_size: Pair, stride: Pair
) -> Iterator[tuple[int, Array]]:
    """For each image where its mask (C, OH, OW) points, as indices into its flattened large maps.

    The array is the same every time, filled anew.
    """
    _, c, oh, ow = mask.shape
    p, q = np.divmod(np.arange(kernel_size[0] * kernel_size[1]), kernel_size[1])
    tap = p * size[1] + q
    of_map = np.arange(c)[:, None, None] * (size[0] * size[1])
    of_row = np.arange(oh)[:, None] * (stride[0] * size[1])
    first = of_map + of_row + np.arange(ow) * stride[1]
    where = scratch.empty(mask.shape[1:], np.intp)
    for i, taps in enumerate(mask):
        np.take(tap, taps, out=where, mode="clip")
        where += first
        yield i, where


def _taps(kernel_size: Pair, stride: Pair, padding: Pair, small: Pair, large: Pair) -> Any:
    """For each tap of the window: its number, the windows it is on the map for, and where."""
    for p in range(kernel_size[0]):
        i, h = overlap(p - padding[0], stride[0], small[0], large[0])
        for q in range(kernel_size[1]):
            j, w = overlap(q - padding[1], stride[1], small[1], large[1])
            yield p * kernel_size[1] + q, np.s_[:, :, i, j], np.s_[:, :, h, w]


# --- CUDA launcher --------------------------------------------------------------------------

CONSTANTS = {"THREADS": 256}
MAXPOOL_FORWARD = Kernel("pool2d", "maxpool_forward", CONSTANTS)
MASK_SCATTER = Kernel("pool2d", "mask_scatter", CONSTANTS)
MASK_GATHER = Kernel("pool2d", "mask_gather", CONSTANTS)


def _window(kernel_size: Pair, stride: Pair, padding: Pair) -> dict[str, int]:
    names = ("KH", "KW", "SH", "SW", "PH", "PW")
    return dict(zip(names, (*kernel_size, *stride, *padding), strict=True))


def _sizes(large: tuple[int, ...], small: Pair) -> dict[str, int]:
    n, c, h, w = large
    return {"M": n * c, "H": h, "W": w, "OH": small[0], "OW": small[1]}


def _maxpool_forward_cuda(
    x: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> tuple[Array, Array]:
    backend = backend_of(x)
    n, c, h, w = x.shape
    oh = output_size(h, kernel_size[0], stride[0], padding[0])
    ow = output_size(w, kernel_size[1], stride[1], padding[1])
    if kernel_size[0] * kernel_size[1] > 256 or any(
        2 * p > k for p, k in zip(padding, kernel_size, strict=True)
    ):
        raise InputError(
            f"a pooling window of {kernel_size} with padding {padding}: use at most 256 taps "
            "and a padding of at most half the window"
        )
    y = backend.empty((n, c, oh, ow))
    mask = backend.empty((n, c, oh, ow), np.uint8)
    arguments = {
        "x": x, "y": y, "mask": mask,
        **_sizes(x.shape, (oh, ow)), **_window(kernel_size, stride, padding),
    }  # fmt: skip
    backend.launch(MAXPOOL_FORWARD, backend.blocks(MAXPOOL_FORWARD, y.size), arguments)
    return y, mask


def _mask_scatter_cuda(
    small: Array,
    mask: Array,
    *,
    size: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
) -> Array:
    backend = backend_of(small)
    n, c, oh, ow = small.shape
    large = backend.empty((n, c, *size))
    arguments = {
        "small": small, "mask": mask, "large": large,
        **_sizes(large.shape, (oh, ow)), **_window(kernel_size, stride, padding),
    }  # fmt: skip
    backend.launch(MASK_SCATTER, backend.blocks(MASK_SCATTER, large.size), arguments)
    return large


def _mask_gather_cuda(
    large: Array, mask: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Array:
    backend = backend_of(large)
    small = backend.empty(mask.shape)
    arguments = {
        "large": large, "mask": mask, "small": small,
        **_sizes(large.shape, mask.shape[2:]), **_window(kernel_size, stride, padding),
    }  # fmt: skip
    backend.launch(MASK_GATHER, backend.blocks(MASK_GATHER, small.size), arguments)
    return small


maxpool_forward = Op("maxpool_forward", _maxpool_forward, _maxpool_forward_cuda)
mask_scatter = Op("mask_scatter", _mask_scatter, _mask_scatter_cuda)
mask_gather = Op("mask_gather", _mask_gather, _mask_gather_cuda)
