"""The NumPy reference of convolution: matrix products over shifted copies of a map.

Copying a map once per tap of the window would write 108 numbers for each of a 12-channel map's
positions. Copying it once per *column* of taps writes 36; one product then gives, for each row of
taps, its share of the output, and the shares are added where they belong, a whole row further down
each:

    a (K, H, W) --shift by q--> copies (K*KW, H*OW)
    products (KH*R, H*OW) = w (KH*R, K*KW) copies
    out (R, OH*OW)        = sum over p of products[p], from row p on     (contiguous memory)

The output, the input's gradient (a being dy, with the window turned round) and, with products of
the copies and the other map, the weight's gradient all go this way. Where there are few channels to
copy and many to make, all taps are copied and the additions saved.

Images are taken a few at a time, so that copies and products stay in the second-level cache: one
of the deep model's large maps where there used to be two, which is a seventh of all its
convolutions' time. Products are cut to a million multiply-adds, where OpenBLAS computes small
matrices without packing them first: for twelve channels at 60x60, 70 us instead of 107.

The floor for twelve channels at 60x60 is 9.3 million operations, 55 us on one core of a Xeon
(Sapphire Rapids) at 170 GFLOP/s. It takes 125 to 150 in each direction: 55 for the product, 20 for
the copies, 10 for the additions, 10 for bias and activation, the rest for maps that come from
memory and for calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cae_raw.ops import activation as act
from cae_raw.ops import scratch
from cae_raw.ops.windows import Pair, output_size, shifted, unshifted

Array = Any
Shifts = tuple[range, range]

SMALL_PRODUCT = 1_000_000  # multiply-adds; OpenBLAS's limit for its small-matrix kernels
FEWEST_COLUMNS = 256  # where the weights alone are too many for small products


def forward(
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
    oh = output_size(x.shape[2], w.shape[2], stride[0], padding[0])
    ow = output_size(x.shape[3], w.shape[3], stride[1], padding[1])
    y = scratch.empty((len(x), len(w), oh, ow), x.dtype)
    for part in _correlate(x, w, _shifts_of_x(w.shape[2:], padding), stride, y):
        part += b[:, None]  # now, because it is still in the cache
        act.apply_in_place(part, activation)
    return y


def backward_input(
    dy: Array,
    w: Array,
    *,
    input_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    gate: Array | None = None,
) -> Array:
    """dx (N, C, *input_size): what each input got from every window that read it.

    With the output `gate` of the ReLU that made the input, the gradient of what went into that one.
    """
    dx = scratch.empty((len(dy), w.shape[1], *input_size), dy.dtype)
    if stride == (1, 1):
        shifts = _shifts_of_y(w.shape[2:], padding)
        for _ in _correlate(dy, w.transpose(1, 0, 2, 3), shifts, stride, dx):
            pass
    else:
        _spread(dy, w, _shifts_of_x(w.shape[2:], padding), stride, dx)
    return dx if gate is None else act.relu_backward(dx, gate)


def backward_weight(
    dy: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    out: Array | None = None,
) -> Array:
    """dw[o,c,p,q] = sum over n,i,j of dy[n,o,i,j] * x at the tap (p, q). Overwrites `out`."""
    o, c = dy.shape[1], x.shape[1]
    dw = np.empty((o, c, *kernel_size), dtype=x.dtype) if out is None else out
    # The map with fewer numbers to copy, in the positions of the other, is the one to copy.
    if stride == (1, 1) and o * prod(x.shape[2:]) < c * prod(dy.shape[2:]):
        sums = _products_with_copies(dy, x, _shifts_of_y(kernel_size, padding), stride)
        dw[...] = sums.transpose(0, 3, 1, 2)
    else:
        sums = _products_with_copies(x, dy, _shifts_of_x(kernel_size, padding), stride)
        dw[...] = sums.transpose(3, 0, 1, 2)
    return dw


def backward_bias(dy: Array, *, out: Array | None = None) -> Array:
    """db[o] = sum of dy over images and positions. dy (N, O, OH, OW); overwrites `out` (O,)."""
    return np.sum(dy, axis=(0, 2, 3), out=out)


def _correlate(a: Array, w: Array, shifts: Shifts, stride: Pair, out: Array) -> Iterator[Array]:
    """out[n,r,i,j] = sum over k,p,q of w[r,k,p,q] * a[n,k,i*SH + shifts_h[p],j*SW + shifts_w[q]].

    Yields every part of out, (images, R, positions), as soon as it is there. w (R, K, KH, KW).
    """
    r, k, kh, kw = w.shape
    n, _, oh, ow = out.shape
    flat = out.reshape(n, r, oh * ow)
    # Either matrix is the transpose of one in memory: a tenth less for these products.
    copy_all = stride[0] > 1 or k * kh * kw <= k * kw + r * kh
    if copy_all:
        matrix, halo, starts = np.ascontiguousarray(w.reshape(r, k * kh * kw).T).T, 0, range(1)
    else:
        matrix, halo = w.transpose(1, 3, 2, 0).reshape(k * kw, kh * r).T, kh - 1
        shifts, starts = _without_rows(shifts)
    last = None
    for images, rows, copies in shifted(a, shifts, stride, (oh, ow), halo):
        part = flat[images, :, rows.start * ow : rows.stop * ow]
        if copy_all:
            _multiply(_cuts(matrix, copies, part))
            yield part
            continue
        if copies is not last:  # views cost as much as small products: make them once
            last, length = copies, part.shape[2]
            products = scratch.rows((len(copies), kh * r, copies.shape[2]), a.dtype)
            cuts = _cuts(matrix, copies, products)
            shares = [
                products[:, p * r : (p + 1) * r, start * ow : start * ow + length]
                for p, start in enumerate(starts)
            ]
        _multiply(cuts)
        np.add(shares[0], shares[1], out=part)
        for share in shares[2:]:
            part += share
        yield part


def _products_with_copies(a: Array, b: Array, shifts: Shifts, stride: Pair) -> Array:
    """s[k,p,q,r] = sum over n,i,j of a[n,k,i*SH + shifts_h[p],j*SW + shifts_w[q]] * b[n,r,i,j]."""
    k, kh, kw = a.shape[1], len(shifts[0]), len(shifts[1])
    _, r, oh, ow = b.shape
    copy_all = stride[0] > 1
    if copy_all:
        halo, starts, height = 0, range(1), k * kh * kw
    else:
        shifts, starts = _without_rows(shifts)
        halo, height = kh - 1, k * kw
    sums, last = np.zeros((len(starts), height, r), a.dtype), None
    for images, rows, copies in shifted(a, shifts, stride, (oh, ow), halo):
        n, length = len(copies), (rows.stop - rows.start) * ow
        if copies is not last:
            last, cuts = copies, _columns(height * r, length)
            views = [_rows_of_taps(copies, starts, ow, *cut) for cut in cuts]
        other = b[images, :, rows].reshape(n, r, length)
        for view, (columns, count) in zip(views, cuts, strict=True):
            products = np.matmul(view, _side_by_side(other[:, :, columns], count).swapaxes(2, 3))
            sums += products.sum(axis=(1, 2))
    if copy_all:
        return sums.reshape(k, kh, kw, r)
    return sums.reshape(kh, k, kw, r).transpose(1, 0, 2, 3)


def _rows_of_taps(copies: Array, starts: range, ow: int, columns: slice, count: int) -> Array:
    """A view (KH, N, count, K, L / count): for each row of taps the columns, `starts` rows on."""
    (n, k, _), (of_image, of_row, item) = copies.shape, copies.strides
    width = (columns.stop - columns.start) // count
    return as_strided(
        copies[:, :, starts.start * ow + columns.start :],
        (len(starts), n, count, k, width),
        (starts.step * ow * item, of_image, width * item, of_row, item),
    )


def _spread(a: Array, w: Array, shifts: Shifts, stride: Pair, out: Array) -> None:
    """out (N, R, ...) = what each of a (N, K, H, W) adds to the window it belongs to.

    w (K, R, KH, KW).
    """
    n, k, h, width = a.shape
    matrix = w.reshape(k, -1).T
    for image in range(n):
        products = scratch.empty((1, len(matrix), h * width), a.dtype)
        _multiply(_cuts(matrix, a[image : image + 1].reshape(1, k, h * width), products))
        grid = products.reshape(1, *w.shape[1:], h, width)
        unshifted(grid, shifts, stride, out[image : image + 1])


def _multiply(cuts: list[tuple[Array, Array, Array]]) -> None:
    for matrix, maps, out in cuts:
        np.matmul(matrix, maps, out=out)


def _cuts(matrix: Array, maps: Array, out: Array) -> list[tuple[Array, Array, Array]]:
    """What to multiply for out (N, R, L) = matrix (R, K) times each of maps (N, K, L)."""
    return [
        (matrix, _side_by_side(maps[:, :, part], count), _side_by_side(out[:, :, part], count))
        for part, count in _columns(matrix.size, maps.shape[2])
    ]


def _columns(matrix_size: int, length: int) -> list[tuple[slice, int]]:
    """Columns and into how many equal blocks to cut them for small products; then what is left."""
    widest = max(SMALL_PRODUCT // max(1, matrix_size), FEWEST_COLUMNS)
    count = -(-length // widest)
    end = length // count * count
    return [(slice(0, end), count)] + ([(slice(end, length), 1)] if end < length else [])


def _side_by_side(maps: Array, count: int) -> Array:
    """A view (N, count, K, L / count) of maps (N, K, L)."""
    n, k, length = maps.shape
    return maps.reshape(n, k, count, length // count).swapaxes(1, 2)


def _without_rows(shifts: Shifts) -> tuple[Shifts, range]:
    """The shifts with the topmost row's alone, and how far below it each row of taps starts."""
    rows, top = shifts[0], min(shifts[0])
    return (range(top, top + 1), shifts[1]), range(rows.start - top, rows.stop - top, rows.step)


def _shifts_of_x(kernel_size: Pair, padding: Pair) -> Shifts:
    """Where output position 0 reads x, for each tap of the window."""
    (kh, kw), (ph, pw) = kernel_size, padding
    return range(-ph, kh - ph), range(-pw, kw - pw)


def _shifts_of_y(kernel_size: Pair, padding: Pair) -> Shifts:
    """Which output position input position 0 contributes to, for each tap (stride 1)."""
    (kh, kw), (ph, pw) = kernel_size, padding
    return range(ph, ph - kh, -1), range(pw, pw - kw, -1)
