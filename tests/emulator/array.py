"""Arrays in emulated device memory: what of cupy.ndarray moves data, and nothing that computes."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from .compile import EmulatorError
from .memory import Allocation, OutOfMemoryError
from .streams import Stream, current_stream, do, drain, refuse_while_capturing


class MemoryPointer:
    """``ndarray.data``: the address of the first element."""

    def __init__(self, ptr: int, mem: Allocation) -> None:
        self.ptr = ptr
        self.mem = mem

    def copy_from_device_async(
        self, src: MemoryPointer, size: int, stream: Stream | None = None
    ) -> None:
        """As the launches of a graph, one that is recorded finds both by their addresses."""
        to, source = self._bytes(size), src._bytes(size)
        do(lambda: np.copyto(to(), source()), stream)

    def copy_from_host_async(self, mem: int, size: int, stream: Stream | None = None) -> None:
        """Reads the host's memory, which has to be pinned, when the stream comes to it."""
        refuse_while_capturing("a copy from the host")
        to = self._bytes(size)
        do(lambda: ctypes.memmove(to().ctypes.data, mem, size), stream)

    def _bytes(self, size: int) -> Callable[[], np.ndarray]:
        start = self.ptr - self.mem.address
        if not 0 <= start <= start + size <= self.mem.nbytes:
            raise EmulatorError(f"a copy of {size} bytes is outside of the array")
        memory = _memory_of(self.mem)
        return lambda: memory().data[start : start + size]


def _memory_of(allocation: Allocation) -> Callable[[], Allocation]:
    """How work finds its memory: a graph does not keep it, as a graph of CUDA does not."""
    if not current_stream().is_capturing():
        return lambda: allocation
    reference = weakref.ref(allocation)

    def find() -> Allocation:
        found = reference()
        if found is None:
            raise EmulatorError("a graph uses memory that was freed after it was recorded")
        return found

    return find


Allocator = Callable[[int], MemoryPointer]
allocators: list[Allocator] = []  # the last one is used, none: the device's memory


# Kilobytes of shared memory that one block may have, by compute capability.
MAX_SHARED = {"75": 64, "80": 163, "86": 99, "89": 99, "90": 227, "100": 227, "120": 99}


class DeviceState:
    """The state of one emulated device."""

    def __init__(
        self, index: int, total: int, multiprocessors: int, compute_capability: str
    ) -> None:
        self.id = index
        self.used = 0
        self.allocations = 0  # so far
        self.total = total
        self.multiprocessors = multiprocessors
        self.compute_capability = compute_capability
        self.max_shared = MAX_SHARED[compute_capability] * 1024


def _key_ok(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return all(k is Ellipsis or k is None or isinstance(k, (int, slice, np.integer)) for k in parts)


class ndarray:
    """An array in emulated device memory. Views share their array's allocation."""

    __array_ufunc__ = None  # so that `numpy_array * device_array` is a TypeError
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, allocation: Allocation, host: np.ndarray) -> None:
        self._allocation = allocation
        self._host = host

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: int(self._host.size))
    nbytes = property(lambda self: int(self._host.nbytes))
    itemsize = property(lambda self: int(self._host.itemsize))
    ndim = property(lambda self: self._host.ndim)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: type(self)(self._allocation, self._host.T))

    @property
    def device(self) -> DeviceState:
        """Has the number of the device as ``id``, like CuPy's Device."""
        return self._allocation.device

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(int(self._host.ctypes.data), self._allocation)

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return f"<emulated device array {self.dtype}{list(self.shape)}>"

    def __array__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __eq__(self, other: object) -> NoReturn:  # type: ignore[override]
        raise TypeError("emulated device arrays have no operators: write a kernel")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def item(self) -> Any:
        return self.get().item()

    def get(
        self,
        stream: Any = None,
        order: str = "C",
        out: np.ndarray | None = None,
        blocking: bool = True,
    ) -> np.ndarray:
        """A copy in host memory."""
        drain()
        if (damage := self._allocation.damage()) is not None:
            raise EmulatorError(damage)
        if out is None:
            return np.array(self._host, order=order, copy=True)  # type: ignore[call-overload]
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError(f"out is {out.dtype}{out.shape}, not {self.dtype}{self.shape}")
        out[...] = self._host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Overwrite with a host array of the same shape and dtype."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        refuse_while_capturing("a copy from the host")
        copy = arr.copy()  # CuPy has one in pinned memory, or waits
        do(lambda: np.copyto(self._host, copy), stream)

    def copy(self, order: str = "C") -> ndarray:
        result = self._empty(self.shape, self.dtype)
        result[...] = self
        return result

    def fill(self, value: Any) -> None:
        find = self.recorded() if current_stream().is_capturing() else lambda: self
        do(lambda: find()._host.fill(value))

    def recorded(self) -> Callable[[], ndarray]:
        """How a graph finds this array: by its address, as long as its memory is not freed."""
        if not self._host.flags.c_contiguous:
            raise EmulatorError("only contiguous arrays can be part of a graph here")
        start, nbytes = self.data.ptr - self._allocation.address, self.nbytes
        kind, dtype, shape = type(self), self.dtype, self.shape
        memory = _memory_of(self._allocation)

        def find() -> ndarray:
            allocation = memory()
            host = allocation.data[start : start + nbytes].view(dtype).reshape(shape)
            return kind(allocation, host)

        return find

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)):
            shape = tuple(shape[0])
        if self._host.flags.c_contiguous:
            return type(self)(self._allocation, self._host.reshape(shape))
        copy = self.copy()
        return type(self)(copy._allocation, copy._host.reshape(shape))

    def ravel(self, order: str = "C") -> ndarray:
        return self.reshape(-1)

    def flatten(self, order: str = "C") -> ndarray:
        return self.copy().reshape(-1)

    def transpose(self, *axes: Any) -> ndarray:
        return type(self)(self._allocation, self._host.transpose(*axes))

    def squeeze(self, axis: Any = None) -> ndarray:
        return type(self)(self._allocation, self._host.squeeze(axis))

    def view(self, dtype: Any = None) -> ndarray:
        host = self._host.view() if dtype is None else self._host.view(dtype)
        return type(self)(self._allocation, host)

    def __getitem__(self, key: Any) -> ndarray:
        if not _key_ok(key):
            raise TypeError("only slices and integers index an emulated device array")
        # A 0-d result stays an array, as in CuPy.
        key = key if isinstance(key, tuple) else (key,)
        key = key if Ellipsis in [k for k in key if k is Ellipsis] else (*key, Ellipsis)
        return type(self)(self._allocation, self._host[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        target = self[key]._host
        if isinstance(value, ndarray):
            if value.dtype != self.dtype:
                raise TypeError(f"{value.dtype} array copied to {self.dtype} array")
            refuse_while_capturing("an assignment, which may compile a kernel of CuPy,")
            do(lambda: np.copyto(target, np.broadcast_to(value._host, target.shape)))
        elif isinstance(value, np.ndarray):
            if target.shape != self.shape or value.dtype != self.dtype:
                raise TypeError("a NumPy array can only be assigned to a whole array of its dtype")
            self.set(value)
        elif np.isscalar(value):
            refuse_while_capturing("an assignment, which may compile a kernel of CuPy,")
            do(lambda: target.fill(value))
        else:
            raise TypeError(f"cannot assign {type(value).__name__} to an emulated device array")

    def _empty(self, shape: Any, dtype: Any) -> ndarray:
        return empty_on(type(self), self._allocation.device, shape, dtype)


def empty_on(kind: type[ndarray], device: DeviceState, shape: Any, dtype: Any) -> ndarray:
    dtype = np.dtype(float if dtype is None else dtype)
    shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(map(int, shape))
    count = 1
    for length in shape:
        if length < 0:
            raise ValueError("Negative dimensions are not allowed")
        count *= length
    nbytes = count * dtype.itemsize
    source = allocators[-1] if allocators else lambda size: allocate(device, size)
    allocation = source(nbytes).mem
    return kind(allocation, allocation.data.view(dtype).reshape(shape))


def allocate(device: DeviceState, nbytes: int) -> MemoryPointer:
    if device.used + nbytes > device.total:
        raise OutOfMemoryError(
            f"Out of memory allocating {nbytes:,} bytes (allocated so far: {device.used:,} bytes)."
        )
    device.used += nbytes
    device.allocations += 1
    allocation = Allocation(nbytes, device)
    return MemoryPointer(allocation.address, allocation)
