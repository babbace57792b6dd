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

from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import Kernel, backend_of
from cae_raw.errors import InputError
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
    large = np.zeros((n, c, *size), dtype=small.dtype)
    for tap, at_small, at_large in _taps(kernel_size, stride, padding, (oh, ow), size):
        large[at_large] += np.where(mask[at_small] == tap, small[at_small], 0)
    return large


def _mask_gather(
    large: Array, mask: Array, *, kernel_size: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Array:
    """small (N, C, OH, OW): the value of large (N, C, H, W) where each mask points."""
    small = np.zeros(mask.shape, dtype=large.dtype)
    for tap, at_small, at_large in _taps(
        kernel_size, stride, padding, mask.shape[2:], large.shape[2:]
    ):
        np.copyto(small[at_small], large[at_large], where=mask[at_small] == tap)
    return small


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
