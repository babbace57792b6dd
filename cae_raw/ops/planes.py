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
(64 us instead of 84 for nearly four thousand, and 112 for one row of 64). So they take three
copies of another arrangement, (k, q, l), of the operand with fewer channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.ops.scratch import LINE, aligned

Array = Any

FIRST_ROW, ROWS_BELOW = 3, 4  # rows of zeros, for windows that stand out by two and what they read
SUMMED = 1024  # positions per product of a weight gradient


class Level:
    """What the maps between two poolings have in common, and memory for n images of them.

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
        self._memory: dict[Any, Array] = {}

    def by_row(self, channels: int, width: int) -> Array:
        """(n, rows, 3 * channels + 1, width) for copies, the last of each row's lines all ones."""
        key = "by row", channels, width
        if key not in self._memory:
            shape = (self.n, self.height + 2, 3 * channels + 1, width)
            self._memory[key] = aligned(shape, self.dtype)
            self._memory[key][:, :, -1].fill(1)
        return self._memory[key]

    def by_channel(self, channels: int) -> Array:
        """(n, 3 * channels, at least as many places as a plane) for copies."""
        key = "by channel", channels
        if key not in self._memory:
            self._memory[key] = aligned((self.n, 3 * channels, self.length), self.dtype)
        return self._memory[key]


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

    def _cached(self, kind: str, *key: int) -> Array:
        """A view; making one takes as long as a small product."""
        found = self._views.get((kind, *key))
        if found is None:
            found = self._views[(kind, *key)] = getattr(self, kind)(*key)
        return found

    def _shifted_rows(self, border: int, rows: int, width: int) -> Array:
        """(n, rows, q, channels, width), from `border` rows and columns before the first pixel."""
        pitch = self.level.pitch
        view = self._view((rows, 3, width), (pitch, 1, 1), -border * (pitch + 1))
        return view.transpose(0, 2, 3, 1, 4)

    def _shifted(self, border: int, length: int) -> Array:
        """(n, channels, q, length), the same place by place."""
        return self._view((3, length), (1, 1), -border * (self.level.pitch + 1))

    def _products(self, width: int) -> Array:
        """(n, rows, channels, width): where the products of each row go."""
        return self._view((self.height, width), (self.level.pitch, 1)).swapaxes(1, 2)

    def _blocks(self, count: int, width: int) -> Array:
        """(n, count, channels, width): the maps' places in blocks."""
        return self._view((count, width), (width, 1)).swapaxes(1, 2)

    def correlate(self, matrix: Array, border: int, out: Planes) -> None:
        """out[r,i,j] = sum over k,p,q of matrix[(p,q,k), r] * self[k, i+p-border, j+q-border].

        matrix (3 * (3 * channels + 1), out.channels): behind each row of taps what is added, whose
        sum is the bias.
        """
        level, k = self.level, self.channels
        width, rows = whole_lines(out.width, level.dtype), out.height + 2
        copies = level.by_row(k, width)
        grid = copies[:, :rows, :-1].reshape(level.n, rows, 3, k, width)
        np.copyto(grid, self._cached("_shifted_rows", border, rows, width))
        of_image, of_row, of_line, item = copies.strides
        windows = np.ndarray(
            (level.n, out.height, len(matrix), width),
            level.dtype,
            copies,
            0,
            (of_image, of_row, of_line, item),
        )
        np.matmul(matrix.T, windows, out=out._cached("_products", width))
        if out.right is not None:
            out.right[...] = 0

    def outer(self, border: int, other: Planes) -> Array:
        """s[p,(k,q),r] = sum over n,i,j of self[k, i+p-border, j+q-border] * other[r,i,j]."""
        level, (k, r) = self.level, (self.channels, other.channels)
        places = other.height * level.pitch
        count = -(-places // SUMMED)
        width = -(-places // count)  # some places more than there are: zeros in other
        length = count * width + 2 * level.pitch
        copies = level.by_channel(k)
        grid = copies.reshape(level.n, k, 3, -1)[..., :length]
        np.copyto(grid, self._cached("_shifted", border, length))
        of_image, of_line, item = copies.strides
        rows_of_taps = np.ndarray(
            (3, level.n, count, 3 * k, width),
            level.dtype,
            copies,
            0,
            (level.pitch * item, of_image, width * item, of_line, item),
        )
        blocks = other._cached("_blocks", count, width)
        products = np.matmul(rows_of_taps, blocks.swapaxes(2, 3))
        return np.add.reduce(products.reshape(3, level.n * count, 3 * k, r), axis=1)

    def keep_where_positive(self, y: Planes) -> None:
        """relu's gradient: zero where y, an output of relu, is zero.

        As whole numbers: y's bits, a whole number from 0 on, limited to 1, times the bits of this.
        Both passes run at the speed of the cache; a product with a mask of bytes does not.
        """
        whole = np.dtype(f"i{self.level.dtype.itemsize}")
        bits = self.rows.view(whole)
        bits *= np.minimum(y.rows.view(whole), 1)

    def relu(self) -> None:
        """max(x, 0) in place."""
        np.maximum(self.rows, 0, out=self.rows)

    def sums(self) -> Array:
        """(channels,), the sums over images and positions."""
        return np.add.reduce(np.add.reduce(self.rows, axis=2), axis=0)


def whole_lines(width: int, dtype: Any) -> int:
    """The width in whole cache lines of numbers."""
    numbers = LINE // np.dtype(dtype).itemsize
    return -(-width // numbers) * numbers


def _odd_lines(places: int, dtype: Any) -> int:
    """At least so many places, in an odd number of cache lines: planes do not compete then."""
    numbers = LINE // np.dtype(dtype).itemsize
    return (-(-places // numbers) | 1) * numbers
