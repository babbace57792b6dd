"""Sliding windows over images: how many there are, shifted copies, and the way back.

Convolution, pooling and unpooling all walk a window of KH x KW taps over a map; the index
arithmetic, with strides and zero padding, stands here once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.errors import InputError
from cae_raw.ops import scratch

Array = Any
Pair = tuple[int, int]


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Number of window positions along one axis; at least 1.

    Raises:
        InputError: if the window is larger than the padded input.
    """
    if size + 2 * padding < kernel:
        raise InputError(
            f"a window of {kernel} does not fit an input of {size} with padding {padding}: "
            "use a larger image or a smaller kernel"
        )
    return (size + 2 * padding - kernel) // stride + 1


def overlap(shift: int, stride: int, size: int, source: int) -> tuple[slice, slice]:
    """Positions i in [0, size) with 0 <= i*stride + shift < source, and where they read."""
    first = max(0, -(shift // stride))  # the smallest i with i*stride + shift >= 0
    last = min(size - 1, (source - 1 - shift) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + shift
    return slice(first, last + 1), slice(start, last * stride + shift + 1, stride)


def shifted(a: Array, shifts: tuple[range, range], stride: Pair, size: Pair) -> Array:
    """s[n, c, p, q, i, j] = a[n, c, i*SH + shifts_h[p], j*SW + shifts_w[q]], 0 outside a."""
    n, c = a.shape[:2]
    shape = (n, c, len(shifts[0]), len(shifts[1]), *size)
    s = scratch.empty(shape, a.dtype)
    if not s.size:
        return s
    padded, (top, left) = _with_borders(a, shifts, stride, size)
    step_n, step_c, step_h, step_w = padded.strides
    # One strided view of everything and one copy: a loop over the taps costs more than it moves.
    view = np.ndarray(
        shape,
        a.dtype,
        padded,
        (shifts[0].start + top) * step_h + (shifts[1].start + left) * step_w,
        (
            step_n,
            step_c,
            shifts[0].step * step_h,
            shifts[1].step * step_w,
            stride[0] * step_h,
            stride[1] * step_w,
        ),
    )
    np.copyto(s, view)
    return s


def _with_borders(
    a: Array, shifts: tuple[range, range], stride: Pair, size: Pair
) -> tuple[Array, Pair]:
    """a with zeros wherever a shifted read goes, and how many rows and columns come before it."""
    before, after = [], []
    for axis in (0, 1):
        low, high = min(shifts[axis]), max(shifts[axis]) + (size[axis] - 1) * stride[axis]
        before.append(max(0, -low))
        after.append(max(0, high - (a.shape[2 + axis] - 1)))
    if not any(before + after):
        return np.ascontiguousarray(a), (0, 0)
    n, c, h, w = a.shape
    padded = scratch.zeros((n, c, before[0] + h + after[0], before[1] + w + after[1]), a.dtype)
    padded[:, :, before[0] : before[0] + h, before[1] : before[1] + w] = a
    return padded, (before[0], before[1])


def unshifted(s: Array, shifts: tuple[range, range], stride: Pair, size: Pair) -> Array:
    """The adjoint of `shifted`: every copy is added back to where it was read. s (N,C,KH,KW,..)."""
    n, c = s.shape[:2]
    a = scratch.zeros((n, c, *size), s.dtype)
    for p, dh in enumerate(shifts[0]):
        from_i, to_i = overlap(dh, stride[0], s.shape[4], size[0])
        for q, dw in enumerate(shifts[1]):
            from_j, to_j = overlap(dw, stride[1], s.shape[5], size[1])
            a[:, :, to_i, to_j] += s[:, :, p, q, from_i, from_j]
    return a
