"""Sliding windows over images: how many there are, shifted copies, and the way back.

Convolution, pooling and unpooling all walk a window of KH x KW taps over a map; the index
arithmetic, with strides and zero padding, stands here once.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from cae_raw.errors import InputError
from cae_raw.ops import scratch

Array = Any
Pair = tuple[int, int]

BLOCK_BYTES = 800_000  # of shifted copies at a time; measured, with 2 MB of second-level cache


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


def shifted(
    a: Array, shifts: tuple[range, range], stride: Pair, size: Pair, halo: int = 0
) -> Iterator[tuple[slice, slice, Array]]:
    """Copies of a, one per tap of a window, in blocks of a few images or of rows of one.

        s[n, (c, p, q), (i, j)] = a[n, c, i*SH + shifts_h[p], j*SW + shifts_w[q]], 0 outside a

    for i in [0, size[0] + halo) and j in [0, size[1]). Yields (images, rows, block) until all of s,
    (N, C*KH*KW, ...), was there; a block begins with the first of its rows, a part of [0, size[0]),
    and goes on for `halo` rows after the last. It is so small that it can be read from the cache
    it was just written to. The next block of its shape is the same array, filled anew.
    """
    n, c = a.shape[:2]
    kernel, tall = (len(shifts[0]), len(shifts[1])), (size[0] + halo, size[1])
    taps = c * prod(kernel)
    if not n * taps * prod(size):
        return
    per_row = taps * size[1] * a.itemsize
    together = max(1, min(n, BLOCK_BYTES // (per_row * tall[0])))
    padded, inside, (top, left) = _with_borders(a, shifts, stride, tall, together)
    step_n, step_c, step_h, step_w = padded.strides
    strides = (
        step_n,
        step_c,
        shifts[0].step * step_h,
        shifts[1].step * step_w,
        stride[0] * step_h,
        stride[1] * step_w,
    )
    first = (shifts[0].start + top) * step_h + (shifts[1].start + left) * step_w
    blocks: dict[Pair, tuple[Array, Array]] = {}  # by (images, rows): flat, and with all its axes
    for images in even_cuts(n, together):
        count = images.stop - images.start
        if inside is None:
            start = first + images.start * step_n
        else:
            start = first
            np.copyto(inside[:count], a[images])
        view = np.ndarray((count, c, *kernel, *tall), a.dtype, padded, start, strides)
        for rows in even_cuts(size[0], max(1, BLOCK_BYTES // (per_row * count) - halo)):
            height = rows.stop - rows.start + halo
            if (count, height) not in blocks:
                s = scratch.rows((count, taps, height * size[1]), a.dtype)
                blocks[count, height] = s, s.reshape(count, c, *kernel, height, size[1])
            s, grid = blocks[count, height]
            # One strided copy: a loop over the taps costs more than it moves.
            np.copyto(grid, view[:, :, :, :, rows.start : rows.stop + halo])
            yield images, rows, s


def _with_borders(
    a: Array, shifts: tuple[range, range], stride: Pair, size: Pair, images: int
) -> tuple[Array, Array | None, Pair]:
    """Room for a few images with zeros wherever a shifted read goes.

    Returns it, the view of it that the images go to (None where no border is needed: the room is a
    itself then), and how many rows and columns come before them.
    """
    before, after = [], []
    for axis in (0, 1):
        low, high = min(shifts[axis]), max(shifts[axis]) + (size[axis] - 1) * stride[axis]
        before.append(max(0, -low))
        after.append(max(0, high - (a.shape[2 + axis] - 1)))
    if not any(before + after):
        return np.ascontiguousarray(a), None, (0, 0)
    _, c, h, w = a.shape
    shape = (images, c, before[0] + h + after[0], before[1] + w + after[1])
    padded = scratch.zeros(shape, a.dtype)
    inside = padded[:, :, before[0] : before[0] + h, before[1] : before[1] + w]
    return padded, inside, (before[0], before[1])


def even_cuts(length: int, largest: int) -> list[slice]:
    """As few parts of [0, length) as there can be, none longer than `largest`, of like size."""
    count = -(-length // largest)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]


def unshifted(s: Array, shifts: tuple[range, range], stride: Pair, out: Array) -> None:
    """The adjoint of `shifted`: every copy is added to where it was read.

    s (N, C, KH, KW, OH, OW); out (N, C, *size) is overwritten.
    """
    out.fill(0)
    for p, dh in enumerate(shifts[0]):
        from_i, to_i = overlap(dh, stride[0], s.shape[4], out.shape[2])
        for q, dw in enumerate(shifts[1]):
            from_j, to_j = overlap(dw, stride[1], s.shape[5], out.shape[3])
            out[:, :, to_i, to_j] += s[:, :, p, q, from_i, from_j]
