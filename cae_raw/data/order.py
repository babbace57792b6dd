"""Random numbers that are the same on every machine and with every NumPy version.

NumPy guarantees the raw 64-bit output of its bit generators, not the streams of
Generator.permutation and its kin; so everything here is built on the raw output of Philox.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The highest counter word keeps streams for different purposes apart, whatever their keys.
ORDER_STREAM = 1
SHAPES_STREAM = 2
STREAMING_STREAM = 3
FLIP_STREAM = 4

_MASK = 2**64 - 1


def random_words(stream: int, seed: int, index: int, count: int) -> NDArray[np.uint64]:
    """The first `count` raw 64-bit words of the stream named by (stream, seed, index).

    A longer draw begins with the shorter one. seed and index are taken modulo 2**64.
    """
    key = np.array([seed & _MASK, index & _MASK], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    words: NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(count)
    return words


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Floats in [0, 1) from the top 53 bits of each word; exact, no rounding."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def epoch_flips(n: int, seed: int, epoch: int) -> NDArray[np.uint8]:
    """Which of n examples are mirrored in an epoch, by their position in it: uint8 (n,), 0 or 1.

    A pure function of its arguments, the same everywhere: the top bit of one random word each.
    """
    words = random_words(FLIP_STREAM, seed, epoch, n)
    return (words >> np.uint64(63)).astype(np.uint8)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of n examples in an epoch: int64 permutation of range(n), shape (n,).

    A pure function of its arguments, the same everywhere: the examples sorted by one random
    64-bit word each, ties (practically none) in their natural order.
    """
    words = random_words(ORDER_STREAM, seed, epoch, n)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
