"""A CUDA device: arrays are CuPy arrays, work is done by the kernels in kernels/*.cu.

CuPy checks nothing about a raw kernel's arguments: a transposed view is read as if it were not
transposed, a Python float arrives as a double, a short array is read past its end. So every kernel
of the package starts in `CudaBackend.launch`, which compares each argument with the kernel's own
source text.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.backends import kernel_source
from cae_raw.backends.base import Array, Shape

MAX_GRID = 2**31 - 1
LARGE = 64 << 20  # bytes; arrays from this size on are copied without pinned memory
_NULL = np.uint64(0)  # what a kernel receives for an optional array that is not there


def import_cupy() -> Any:
    """The module `cupy`, imported when a CUDA device is first asked for."""
    import cupy

    return cupy


@dataclass(frozen=True)
class Kernel:
    """One entry point of a kernel file, compiled with some constants.

    Args:
        file: stem of the file in kernels/.
        entry: name of the `__global__` function.
        constants: the -D options, all of them integers.
        threads: the constant that is the block size; the source uses the same one.
    """

    file: str
    entry: str
    constants: Mapping[str, int] = field(hash=False)
    threads: str = "THREADS"

    @functools.cached_property
    def module_key(self) -> tuple[Any, ...]:
        """Kernels with equal keys come from one compiled module."""
        return (self.file, *sorted(self.constants.items()))

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        return (self.entry, self.module_key)

    @property
    def block(self) -> int:
        return self.constants[self.threads]

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler options, in a fixed order because they are part of CuPy's cache key."""
        return ("-std=c++17", *(f"-D{k}={v}" for k, v in sorted(self.constants.items())))


class CudaBackend:
    """One CUDA device.

    Attributes:
        name: "cuda:0" and so on.
        first_use: called with a file's stem before one of its modules is first compiled or loaded.
        forced_grid: where it is not None, every launch uses this many blocks. Every kernel is right
            for every grid; tests set this to show it.
    """

    def __init__(self, cupy: Any, device: int = 0, kernels_dir: Path | None = None) -> None:
        self.cupy = cupy
        self.device = device
        self.name = f"cuda:{device}"
        self.first_use: Callable[[str], None] | None = None
        self.forced_grid: int | None = None
        self._kernels_dir = kernels_dir
        self._context = cupy.cuda.Device(device)
        with self._context:  # a device that does not exist is an error here
            cupy.cuda.runtime.getDevice()
        self._functions: dict[tuple[Any, ...], tuple[Any, kernel_source.Entry]] = {}
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._allowed: dict[tuple[Any, ...], int] = {}  # bytes of dynamic shared memory
        self._lock = threading.Lock()
        self.register()

    def register(self) -> None:
        """Make this the backend that `backend_of` finds for its arrays, as creating it does."""
        _BACKENDS[(self.cupy.ndarray, self.device)] = self

    def empty(self, shape: Shape, dtype: Any = np.float32) -> Array:
        with self._context:
            return self.cupy.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: Any = np.float32) -> Array:
        with self._context:
            return self.cupy.zeros(shape, dtype)

    def asarray(self, host: Any) -> Array:
        """A device copy of a host array; a device array comes back as it is."""
        if isinstance(host, self.cupy.ndarray):
            return host
        host = np.ascontiguousarray(host)
        with self._context:
            if host.nbytes < LARGE:
                return self.cupy.asarray(host)
            # asarray would page-lock a copy, rounded up to a power of two, for the process's life.
            array = self.cupy.empty(host.shape, host.dtype)
            array.set(host)
            self.cupy.cuda.get_current_stream().synchronize()  # the caller may change `host` now
            return array

    def to_numpy(self, array: Array) -> np.ndarray:
        with self._context:
            return np.asarray(self.cupy.asnumpy(array))

    def uploaded(self, batches: Iterator[np.ndarray]) -> Iterator[Array]:
        from cae_raw.backends.upload import uploaded

        return uploaded(self, batches)

    def synchronize(self) -> None:
        self._context.synchronize()

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Which generation of GPU this is, such as (9, 0)."""
        digits = str(self._context.compute_capability)
        return int(digits[:-1]), int(digits[-1])

    @property
    def compiling(self) -> bool:
        """True while a kernel file is being compiled or loaded."""
        return self._lock.locked()

    @functools.cached_property
    def multiprocessors(self) -> int:
        """How many blocks run at the same time if each needs a multiprocessor to itself."""
        return int(self._context.attributes["MultiProcessorCount"])

    @functools.cached_property
    def shared_limit(self) -> int:
        """Bytes of shared memory that one block may have, static and dynamic together."""
        return int(self._context.attributes["MaxSharedMemoryPerBlockOptin"])

    def launch(
        self, kernel: Kernel, grid: int, arguments: Mapping[str, Any], *, shared: int = 0
    ) -> None:
        """Start `kernel` with `grid` blocks; `arguments` by the names of its parameters, in order.

        Arrays must be C-contiguous, on this device, of the declared dtype and shape; a declared
        shape of one dimension is a number of elements. Scalars are cast to the declared type.
        A grid of 0 means that there is nothing to do. `shared` is in bytes of dynamic shared
        memory; the kernel's own arrays and it must stay within `shared_limit`.

        Raises:
            TypeError: for a wrong name, type, dtype, layout or device.
            ValueError: for a wrong shape, a scalar out of range, a grid that is too large, or more
                shared memory than the device has.
        """
        function, entry = self._function(kernel)
        values = self._checked(kernel, entry, arguments)
        if not 0 <= grid <= MAX_GRID:
            raise ValueError(f"{kernel.entry}: a grid of {grid} blocks is not possible")
        if grid == 0:
            return
        if self.forced_grid is not None:
            grid = self.forced_grid
        with self._context:
            if shared:
                self._allow(kernel, function, shared)
                function((grid,), (kernel.block,), values, shared_mem=shared)
            else:
                function((grid,), (kernel.block,), values)

    def _allow(self, kernel: Kernel, function: Any, shared: int) -> None:
        """Raise a kernel's limit of dynamic shared memory, which is 48 KiB until somebody asks."""
        if shared <= self._allowed.get(kernel.key, 0):
            return
        room = self.shared_limit - function.shared_size_bytes
        if shared > room:
            raise ValueError(f"{kernel.entry}: {shared} bytes of shared memory, {room} are there")
        function.max_dynamic_shared_size_bytes = shared
        self._allowed[kernel.key] = shared

    def blocks(self, kernel: Kernel, elements: int) -> int:
        """The grid for one thread per element, up to a size at which any GPU is busy."""
        return min(-(-elements // kernel.block), 1 << 16)

    def _checked(
        self, kernel: Kernel, entry: kernel_source.Entry, arguments: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        if tuple(arguments) != entry.names:
            raise TypeError(
                f"{kernel.entry}: arguments {tuple(arguments)}, but it takes {entry.names}"
            )
        given = list(zip(entry.parameters, arguments.values(), strict=True))
        values = [a if p.pointer else _scalar(kernel, p, a) for p, a in given]
        sizes = {**kernel.constants, **arguments}  # what the declared shapes are made of
        for i, (p, a) in enumerate(given):
            if p.pointer:
                values[i] = self._array(kernel, p, a, sizes)
        return tuple(values)

    def _array(
        self, kernel: Kernel, p: kernel_source.Parameter, array: Any, sizes: dict[str, Any]
    ) -> Any:
        what = f"{kernel.entry}: {p.name}"
        if array is None and p.optional:
            return _NULL
        if not isinstance(array, self.cupy.ndarray):
            raise TypeError(f"{what} is a {type(array).__name__}, not an array on {self.name}")
        if array.dtype != p.dtype:
            raise TypeError(f"{what} has dtype {array.dtype}, but the kernel takes {p.dtype}")
        if not array.flags.c_contiguous:
            raise TypeError(f"{what} is not C-contiguous: copy it first")
        if _device_of(array) != self.device:
            raise TypeError(f"{what} is on device {_device_of(array)}, not on {self.name}")
        assert p.shape is not None and p.shape_code is not None
        expected = eval(p.shape_code, {"__builtins__": {}}, sizes)
        fits = array.size == expected[0] if len(expected) == 1 else array.shape == expected
        if not fits:
            raise ValueError(
                f"{what} has shape {tuple(array.shape)}, "
                f"but the kernel takes ({', '.join(p.shape)}) = {expected}"
            )
        return array

    def _function(self, kernel: Kernel) -> tuple[Any, kernel_source.Entry]:
        found = self._functions.get(kernel.key)
        if found is not None:
            return found
        with self._lock, self._context:
            module = self._modules.get(kernel.module_key)
            if module is None:
                if self.first_use is not None:
                    self.first_use(kernel.file)
                module = self.cupy.RawModule(
                    code=kernel_source.expand(kernel.file, self._kernels_dir),
                    options=kernel.options,
                    backend="nvrtc",
                )
                self._modules[kernel.module_key] = module
            entry = kernel_source.entries(kernel.file, self._kernels_dir)[kernel.entry]
            result = (module.get_function(kernel.entry), entry)
            self._functions[kernel.key] = result
        return result


def _scalar(kernel: Kernel, p: kernel_source.Parameter, value: Any) -> np.generic:
    whole = type(value) is int or isinstance(value, np.integer)  # a bool is neither
    if p.limits is not None:
        if not whole:
            raise TypeError(f"{kernel.entry}: {p.name} must be an integer, not {value!r}")
        if not p.limits[0] <= value <= p.limits[1]:
            raise ValueError(f"{kernel.entry}: {p.name} = {value} does not fit {p.dtype}")
    elif not whole and not isinstance(value, (float, np.floating)):
        raise TypeError(f"{kernel.entry}: {p.name} must be a number, not {value!r}")
    scalar: np.generic = p.dtype.type(value)
    return scalar


# One backend per kind of array and device.
_BACKENDS: dict[tuple[type, int], CudaBackend] = {}


def _device_of(array: Any) -> int:
    return int(array.device.id)


def backend_of(array: Array) -> CudaBackend:
    """The backend whose array this is.

    Raises:
        TypeError: if no backend made arrays of this kind on its device.
    """
    try:
        return _BACKENDS[(type(array), _device_of(array))]
    except (AttributeError, KeyError):
        raise TypeError(
            f"{type(array).__name__} is not an array of a CUDA backend in use"
        ) from None
