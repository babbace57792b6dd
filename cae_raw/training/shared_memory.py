"""Arrays that several processes see, and objects that refer to them.

    this process          memory file          another process
    arrays = views  --->  ( no name )  <---  arrays = views

The file exists in memory only and has no name: no size of /dev/shm limits it, and it is gone with
the last process that maps it, however that process ends. Pages that nobody has written to take no
memory, so an array may be as long as it could ever be needed. An object is sent to another process
as a pickle in which every array that lies in the file is told by its place there.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from math import prod
from typing import Any

import numpy as np

Array = Any
Layout = dict[str, tuple[tuple[int, ...], Any]]  # name: shape and number type

ALIGNMENT = 64  # bytes, a cache line: what two processes write to shares none


def private_arrays(layout: Layout) -> dict[str, Array]:
    """Such arrays in this process's own memory, not initialised."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}


class SharedMemory:
    """A mapped memory file.

    Args:
        fd: of the file; whoever opened it closes it, the mapping stays.
        size: in bytes.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._bytes = np.frombuffer(mmap.mmap(fd, size), np.uint8)
        self._start = _address(self._bytes)

    def arrays(self, layout: Layout) -> dict[str, Array]:
        """Views of it, one behind the other; zeros in a new file."""
        views, start = {}, 0
        for name, (shape, dtype) in layout.items():
            views[name] = self._view(start, shape, dtype)
            start += _room(shape, dtype)
        return views

    def dumps(self, thing: object) -> bytes:
        """The thing as bytes for `loads` in another process that maps the same file."""
        file = io.BytesIO()
        pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = self._place_of  # type: ignore[method-assign]
        pickler.dump(thing)
        return file.getvalue()

    def loads(self, data: bytes) -> Any:
        """The thing, its arrays being views of this mapping."""
        unpickler = pickle.Unpickler(io.BytesIO(data))
        unpickler.persistent_load = lambda place: self._view(*place)  # type: ignore[method-assign]
        return unpickler.load()

    def _view(self, start: int, shape: tuple[int, ...], dtype: Any) -> Array:
        end = start + prod(shape) * np.dtype(dtype).itemsize
        return self._bytes[start:end].view(dtype).reshape(shape)

    def _place_of(self, thing: object) -> tuple[int, tuple[int, ...], str] | None:
        """Where an array lies in the file; None for whatever else is to be sent by value."""
        if not isinstance(thing, np.ndarray) or not thing.flags.c_contiguous:
            return None
        start = _address(thing) - self._start
        inside = start >= 0 and start + thing.nbytes <= self._bytes.size
        return (start, thing.shape, thing.dtype.str) if inside else None


def size_of(layout: Layout) -> int:
    """Bytes of a file that holds such arrays."""
    return max(1, sum(_room(shape, dtype) for shape, dtype in layout.values()))


def open_file(size: int) -> int:
    """The descriptor of a new memory file; Linux only.

    Raises:
        OSError: if the system gives none.
    """
    fd = os.memfd_create("cae-raw")
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def _room(shape: tuple[int, ...], dtype: Any) -> int:
    return -(-prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
