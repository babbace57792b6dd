"""Memory for intermediate arrays that is used again, the way a GPU's memory pool works.

A training step makes and drops the same few maps over and over. Handing each of them back to the
operating system costs more than computing some of them: at two megabytes a map, every new one is
six hundred page faults. Inside `reusing()` a dropped array's memory goes to a list of its thread,
and the next array of that size takes it from there, still warm in the cache. The single-layer
training step on CIFAR-10 runs about twice as fast for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

Array = Any
Shape = tuple[int, ...]
Stock = dict[int, list[Array]]  # free blocks of memory by their size in bytes

SMALLEST = 1 << 16  # bytes; the allocator of the C library is good at anything below
LINE = 64  # bytes of a cache line
# Elements of NumPy's buffer. Where several runs of memory that are not adjacent fit it, NumPy
# copies them there and back: an addition of 21,600 numbers takes 9 us instead of 3. By default 8192
# elements fit it; with this, the deep model's convolutions take 4 % less time.
BUFFER = 512


class _Pool(threading.local):
    """Free blocks of this thread by size, or None where memory is not to be used again."""

    free: Stock | None = None


_pool = _Pool()


class _Lease:
    """Lends memory to one array, and takes it back when that array and its views are gone."""

    def __init__(self, memory: Array, home: list[Array]) -> None:
        self.memory, self.home = memory, home
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self.home.append(self.memory)


def empty(shape: Shape, dtype: Any = np.float32) -> Array:
    """An uninitialised C-contiguous array, of memory used before where that is switched on."""
    free = _pool.free
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if free is None or size < SMALLEST:
        return np.empty(shape, dtype)
    home = free.setdefault(size, [])
    memory = home.pop() if home else aligned((size,), np.uint8)
    return np.asarray(_Lease(memory, home)).view(dtype).reshape(shape)


def aligned(shape: Shape, dtype: Any = np.float32) -> Array:
    """An uninitialised C-contiguous array that begins with a cache line; never pooled.

    Large arrays otherwise begin 16 bytes into one, and every load of a full vector touches two.
    """
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def zeros(shape: Shape, dtype: Any = np.float32) -> Array:
    """The same, filled with zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def rows(shape: Shape, dtype: Any = np.float32) -> Array:
    """An uninitialised array (..., R, L) whose rows are an odd number of cache lines apart.

    Rows that are a power of two apart compete for a few places of the cache. The deep model's
    convolutions take 3 % less time.
    """
    item = np.dtype(dtype).itemsize
    lines = -(-shape[-1] * item // LINE) | 1
    return empty((*shape[:-1], lines * LINE // item), dtype)[..., : shape[-1]]


def reuse_in_this_thread() -> None:
    """Switch reuse on for the rest of this thread's life; what a thread pool's workers call.

    It also makes NumPy's buffer small there, as `reusing` does: see BUFFER.
    """
    _pool.free = {}
    np.setbufsize(BUFFER)


@contextmanager
def reusing(stock: Stock | None = None) -> Iterator[None]:
    """Use memory again in this thread; what is free at the end goes back to the system.

    With a stock, an empty dict at first, it stays there for the next time. Meanwhile NumPy's buffer
    is small in this thread.
    """
    before = _pool.free
    if before is None:
        _pool.free = {} if stock is None else stock
    bufsize = np.setbufsize(BUFFER)
    try:
        yield
    finally:
        np.setbufsize(bufsize)
        _pool.free = before
