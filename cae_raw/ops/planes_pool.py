"""Max-pooling of planes by windows of 2x2, and the ways through its mask.

The mask is kept as the place of each maximum in the planes, for all planes of a level alike: to put
values there or to take them from there is one indexing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cae_raw.ops.planes import Planes
from cae_raw.ops.scratch import aligned

Array = Any


class PlanesPool:
    """Pools n images' planes (n, C, H, W) of one kind to (n, C, H // 2, W // 2)."""

    def __init__(self, like: Planes) -> None:
        level, pitch = like.level, like.level.pitch
        oh, ow = like.height // 2, like.width // 2
        self.pitch, self.shape = pitch, (level.n, like.channels, oh, ow)
        self.length = 2 * oh * pitch
        shape = (level.n, like.channels, self.length)
        self.pairs, self.fours = aligned(shape, level.dtype), aligned(shape, level.dtype)
        self.right, self.below, self.code = (aligned(shape, np.uint8) for _ in range(3))
        planes = np.arange(level.n * like.channels).reshape(level.n, -1, 1, 1) * level.length
        rows, columns = np.arange(oh)[:, None] * (2 * pitch), np.arange(ow) * 2
        self.corner = planes + (level.first + rows + columns)
        self.offset = np.array([0, 1, pitch, pitch + 1])

    def _corners(self, array: Array) -> Array:
        of_image, of_plane, item = array.strides
        return np.ndarray(
            self.shape, array.dtype, array, 0, (of_image, of_plane, 2 * self.pitch * item, 2 * item)
        )

    def forward(self, x: Planes, y: Array, where: Array) -> None:
        """Fill y (n, C, OH, OW) with the maxima and `where` (intp, same shape) with their places.

        Maxima of pairs, then of pairs of those, at every place, because that reads and writes
        memory in one go; a quarter of them is picked at the end.
        """
        first, length, pitch = x.level.first, self.length, self.pitch
        here, next_to = x.memory[:, :, first : first + length], x.memory[:, :, first + 1 :]
        next_to, pairs, fours = next_to[:, :, :length], self.pairs, self.fours[:, :, :-pitch]
        np.maximum(here, next_to, out=pairs)
        np.greater(next_to, here, out=self.right.view(bool))
        above, underneath = pairs[:, :, :-pitch], pairs[:, :, pitch:]
        below, code = self.below[:, :, :-pitch], self.code[:, :, :-pitch]
        np.maximum(above, underneath, out=fours)
        np.greater(underneath, above, out=below.view(bool))
        # The column of the row below's where that is larger, or else of the row above's.
        of_above, of_below = self.right[:, :, :-pitch], self.right[:, :, pitch:]
        np.bitwise_xor(of_above, of_below, out=code)
        code &= below
        code ^= of_above
        below += below
        code += below
        np.copyto(y, self._corners(self.fours))
        np.take(self.offset, self._corners(self.code), out=where, mode="clip")
        where += self.corner


def put(values: Array, where: Array, out: Planes) -> None:
    """out = zeros, but values (n, C, OH, OW) where they belong."""
    out.memory.fill(0)
    out.flat[where] = values


def take(x: Planes, where: Array, out: Array) -> None:
    """out (n, C, OH, OW) = what x has there."""
    # Clipping changes nothing, the places being inside; checking would cost a copy.
    np.take(x.flat, where, out=out, mode="clip")
