"""Maps with zeros around them, and 3x3 convolutions on them by products without sums of shares.

A plane has `pitch` places to a row; the zeros right of one row are those left of the next, so that
a shift by rows and columns is one by a number of places. All planes of a *level*, which is what
lies between two poolings, have the same pitch and length, so that a place found in one (of a
maximum, say) is a place in all of them:

    plane    zeros (3 rows) | row 0, zeros | row 1, zeros | ... | zeros (4 rows)
                            ^ FIRST_ROW

Convolution. Copies are arranged row by row, copies[i] = (q, k, j): for each column of taps q and
channel k the row i of the map, shifted. The windows of output row i are then the 9K neighbouring
rows of this matrix from copies[i] on: taps (p, q, k) of position (i, j) in row 3K * p + K * q + k.
So one product per row of the output, with all taps, needs three copies of the map and no sums:

    out[i] (R, width) = w (R, 9K) windows[i] (9K, width)        windows[i] overlaps windows[i + 1]

A row of ones behind each 3K brings the bias. Widths are whole cache lines: 54 us instead of 71 for
twelve channels at 60x60, at a floor of 55; what lands right of the map is put to zero.

Weight gradients sum over positions, which for products want to be many in a row: about a thousand
(64 us instead of 72 for nearly two thousand, and 112 for one row of 64). So they take three
copies of another arrangement, (k, q, l), of the operand with fewer channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.ops.scratch import LINE, aligned
from cae_raw.ops.windows import even_cuts

Array = Any

FIRST_ROW, ROWS_BELOW = 3, 4  # rows of zeros, for windows that stand out by two and what they read
COPIES_BYTES = 800_000  # of a convolution's copies at a time
SUMMED = 1024  # positions per product of a weight gradient


class Level:
    """What the maps between two poolings have in common.

    Args:
        n: images.
        height: of the highest map.
        pitch: at least, for every convolution, the width of its input and its padding together,
            and the widths of input and output in whole cache lines (see `whole_lines`).
    """

    def __init__(self, n: int, height: int, pitch: int, dtype: Any) -> None:
        self.n, self.height, self.pitch, self.dtype = n, height, pitch, np.dtype(dtype)
        self.length = _odd_lines((FIRST_ROW + height + ROWS_BELOW) * pitch, self.dtype)
        self.first = FIRST_ROW * pitch
        self.zeros = np.zeros(
            height * pitch, dtype
        )  # a maximum with one number takes twice as long


class Planes:
    """Maps (n, channels, height, width) of a level, zero everywhere around.

    Attributes:
        memory: (n, channels, length).
        content: the maps, a view.
        rows: the maps with the places between their rows, (n, channels, height * pitch), a view.
    """

    def __init__(self, level: Level, channels: int, height: int, width: int) -> None:
        self.level, self.channels, self.height, self.width = level, channels, height, width
        self.memory = aligned((level.n, channels, level.length), level.dtype)
        self.memory.fill(0)
        self.flat = self.memory.reshape(-1)
        self.rows = self.memory[:, :, level.first : level.first + height * level.pitch]
        self.content = self._view((height, width), (level.pitch, 1))
        right = whole_lines(width, level.dtype) - width
        self.right = self._view((height, right), (level.pitch, 1), width) if right else None
        self._views: dict[Any, Array] = {}

    def _view(self, shape: tuple[int, ...], steps: tuple[int, ...], offset: int = 0) -> Array:
        """(n, channels, *shape), from `offset` places behind the first pixel."""
        item = self.memory.itemsize
        return np.ndarray(
            (*self.memory.shape[:2], *shape),
            self.level.dtype,
            self.memory,
            (self.level.first + offset) * item,
            (*self.memory.strides[:2], *(step * item for step in steps)),
        )

    def cached(self, kind: str, *key: int) -> Array:
        """A view; making one takes as long as a small product."""
        name = kind, *key
        found = self._views.get(name)
        if found is None:
            found = self._views[name] = getattr(self, kind)(*key)
        return found

    def _shifted_rows(self, border: int, start: int, rows: int, width: int) -> Array:
        """(n, rows + 2, q, channels, width), from `border` rows and columns before a row."""
        pitch = self.level.pitch
        view = self._view((rows + 2, 3, width), (pitch, 1, 1), (start - border) * pitch - border)
        return view.transpose(0, 2, 3, 1, 4)

    def _shifted(self, border: int, start: int, length: int) -> Array:
        """(n, channels, q, length), the same place by place."""
        return self._view((3, length), (1, 1), start - border * (self.level.pitch + 1))

    def _products(self, start: int, rows: int, width: int) -> Array:
        """(n, rows, channels, width): where the products of each row go."""
        pitch = self.level.pitch
        return self._view((rows, width), (pitch, 1), start * pitch).swapaxes(1, 2)

    def _places(self, start: int, width: int) -> Array:
        """(n, width, channels): some of the maps' places."""
        return self._view((width,), (1,), start).swapaxes(1, 2)

    def keep_where_positive(self, y: Planes) -> None:
        """relu's gradient: zero where y, an output of relu, is zero."""
        rows = self.rows
        np.multiply(rows, y.rows > 0, out=rows)

    def relu(self) -> None:
        """max(x, 0) in place."""
        np.maximum(self.rows, self.level.zeros[: self.rows.shape[2]], out=self.rows)

    def sums(self) -> Array:
        """(channels,), the sums over images and positions."""
        return np.add.reduce(np.add.reduce(self.rows, axis=2), axis=0)


class Convolver:
    """Products of planes of one level, with room for the copies they take; for one thread."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self._views: dict[Any, Any] = {}

    def correlate(self, x: Planes, matrix: Array, border: int, out: Planes) -> None:
        """out[r,i,j] = sum over k,p,q of matrix[(p,q,k), r] * x[k, i+p-border, j+q-border].

        matrix (3 * (3 * x.channels + 1), out.channels): behind each row of taps what is added;
        the sum of that is the bias.
        """
        width = whole_lines(out.width, self.level.dtype)
        transposed = matrix.T
        for band, copies, windows in self._rows_of_windows(x.channels, width, out.height):
            np.copyto(copies, x.cached("_shifted_rows", border, *band))
            np.matmul(transposed, windows, out=out.cached("_products", *band))
        if out.right is not None:
            out.right[...] = 0

    def outer(self, x: Planes, border: int, y: Planes) -> Array:
        """s[p,(k,q),r] = sum over n,i,j of x[k, i+p-border, j+q-border] * y[r,i,j]."""
        places = y.height * self.level.pitch
        count = -(-places // SUMMED)
        width = -(-places // count)  # some places more than there are: zeros in y
        copies, rows_of_taps = self._rows_of_taps(x.channels, width)
        shape = (count, 3, self.level.n, 3 * x.channels, y.channels)
        products = np.empty(shape, self.level.dtype)
        for block in range(count):
            start = block * width
            np.copyto(copies, x.cached("_shifted", border, start, copies.shape[3]))
            np.matmul(rows_of_taps, y.cached("_places", start, width), out=products[block])
        return np.add.reduce(products, axis=(0, 2))

    def _rows_of_windows(self, channels: int, width: int, height: int) -> list[Any]:
        """For bands of an output's rows: the band, room for the copies it reads, their windows."""
        key = "rows", channels, width, height
        if key not in self._views:
            lines = 3 * channels + 1
            most = max(
                1, COPIES_BYTES // (self.level.n * lines * width * self.level.dtype.itemsize) - 2
            )
            bands = even_cuts(height, most)
            tallest = max(band.stop - band.start for band in bands)
            copies = aligned((self.level.n, tallest + 2, lines, width), self.level.dtype)
            copies[:, :, -1].fill(1)
            of_image, of_row, of_line, item = copies.strides
            self._views[key] = [
                (
                    (band.start, rows, width),
                    copies[:, : rows + 2, :-1].reshape(self.level.n, rows + 2, 3, channels, width),
                    np.ndarray(
                        (self.level.n, rows, 3 * lines, width),
                        self.level.dtype,
                        copies,
                        0,
                        (of_image, of_row, of_line, item),
                    ),
                )
                for band in bands
                for rows in [band.stop - band.start]
            ]
        return self._views[key]

    def _rows_of_taps(self, channels: int, width: int) -> tuple[Array, Array]:
        """Room for copies (n, channels, q, places), and the rows of taps (p, n, (k, q), width)."""
        key = "taps", channels, width
        if key not in self._views:
            length = width + 2 * self.level.pitch
            copies = aligned(
                (self.level.n, 3 * channels, _odd_lines(length, self.level.dtype)), self.level.dtype
            )
            of_image, of_line, item = copies.strides
            self._views[key] = (
                copies.reshape(self.level.n, channels, 3, -1)[..., :length],
                np.ndarray(
                    (3, self.level.n, 3 * channels, width),
                    self.level.dtype,
                    copies,
                    0,
                    (self.level.pitch * item, of_image, of_line, item),
                ),
            )
        return self._views[key]


def whole_lines(width: int, dtype: Any) -> int:
    """The width in whole cache lines of numbers."""
    numbers = LINE // np.dtype(dtype).itemsize
    return -(-width // numbers) * numbers


def _odd_lines(places: int, dtype: Any) -> int:
    """At least so many places, in an odd number of cache lines: planes do not compete then."""
    numbers = LINE // np.dtype(dtype).itemsize
    return (-(-places // numbers) | 1) * numbers
