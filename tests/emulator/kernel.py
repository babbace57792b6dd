"""RawModule and RawKernel: compiled by g++, run on the CPU, and checked where CuPy is not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from . import compile as compiling
from .array import DeviceState, ndarray
from .compile import EmulatorError
from .streams import CUDARuntimeError, current_stream, do, refuse_while_capturing

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)
DEFAULT_SHARED = 48 * 1024

_launches = 0


def launch_count() -> int:
    """Kernels that this process has emulated so far."""
    return _launches


class Emulation:
    """What one stand-in module was made with."""

    def __init__(
        self,
        device: DeviceState,
        order_seed: int,
        sanitize: str | None,
        order_check: bool,
        write_check: bool,
        seconds: int,
    ) -> None:
        self.device = device
        self.order_seed = order_seed
        self.sanitize = sanitize
        self.order_check = order_check
        self.write_check = write_check
        self.seconds = seconds
        self.launches = 0


def _triple(value: Any, name: str) -> tuple[int, int, int]:
    if not isinstance(value, tuple) or not 1 <= len(value) <= 3:
        raise TypeError(f"{name} {value!r} must be a tuple of one to three numbers")
    return tuple([int(p) for p in value] + [1] * (3 - len(value)))  # type: ignore[return-value]


class RawKernel:
    """A kernel of a module: callable like CuPy's, but it checks what CuPy does not."""

    def __init__(
        self,
        emulation: Emulation,
        name: str,
        library: Callable[[], compiling.Library],
        flush_denormals: bool,
    ) -> None:
        self._emulation = emulation
        self.name = name
        self._get_library = library
        self._flush = flush_denormals
        self._max_dynamic = DEFAULT_SHARED

    @property
    def _info(self) -> compiling.KernelInfo:
        return self._get_library().kernels[self.name]

    # The CPU compiler has no registers to report; 0 would mean "unlimited occupancy".
    num_regs = property(lambda self: 32)
    local_size_bytes = property(lambda self: 0)
    const_size_bytes = property(lambda self: 0)
    shared_size_bytes = property(lambda self: self._info.static_shared)
    max_threads_per_block = property(lambda self: self._info.max_threads)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._max_dynamic - (
            self._info.static_shared if self._max_dynamic == DEFAULT_SHARED else 0
        )

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, value: int) -> None:
        if value + self._info.static_shared > self._emulation.device.max_shared:
            raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")
        self._max_dynamic = max(value, DEFAULT_SHARED)

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "max_threads_per_block": self.max_threads_per_block,
            "shared_size_bytes": self.shared_size_bytes,
            "local_size_bytes": self.local_size_bytes,
            "num_regs": self.num_regs,
            "max_dynamic_shared_size_bytes": self.max_dynamic_shared_size_bytes,
        }

    def compile(self, log_stream: Any = None) -> None:
        self._get_library()

    def _refuse(self, message: str) -> NoReturn:
        raise EmulatorError(f"{self.name}: {message}", self.name)

    def _check_shape(self, grid: Any, block: Any, shared: int) -> tuple[Any, Any]:
        grid, block = _triple(grid, "grid"), _triple(block, "block")
        for sizes, limits, what in ((grid, MAX_GRID, "grid"), (block, MAX_BLOCK, "block")):
            if any(not 0 < s <= limit for s, limit in zip(sizes, limits, strict=True)):
                self._refuse(f"{what} {sizes} is outside of 1..{limits}")
        threads = block[0] * block[1] * block[2]
        if threads > self._info.max_threads:
            self._refuse(f"{threads} threads in a block, at most {self._info.max_threads} allowed")
        total = shared + self._info.static_shared
        raised = self._max_dynamic > DEFAULT_SHARED
        allowed = self._emulation.device.max_shared if raised else DEFAULT_SHARED
        if shared < 0 or shared > self._max_dynamic or total > allowed:
            self._refuse(
                f"{shared} bytes of dynamic and {self._info.static_shared} of static shared "
                f"memory: only {self._max_dynamic} allowed, unless max_dynamic_shared_size_bytes "
                f"is raised"
            )
        return grid, block

    def _argument(self, index: int, value: Any, code: str) -> Any:
        """The ctypes value for one argument, which must be exactly what the kernel declares."""
        what = f"argument {index}"
        if code[0] in "*&":
            code, _, alignment = code[1:].partition(":")
            if isinstance(value, (np.uint64, np.intp)) and int(value) == 0:
                return ctypes.c_void_p(0)
            if not isinstance(value, ndarray):
                self._refuse(f"{what} is {type(value).__name__}, not a device array")
            if value._allocation.device is not self._emulation.device:
                self._refuse(f"{what} lies on another device")
            if code != "?" and value.dtype != np.dtype(code):
                self._refuse(f"{what} has dtype {value.dtype}, the kernel takes {np.dtype(code)}")
            address = value.data.ptr  # of the view's first element; strides are lost, as in CuPy
            if alignment and address % int(alignment):
                self._refuse(f"{what} is not aligned to {alignment} bytes")
            return ctypes.c_void_p(address)
        if isinstance(value, ndarray):
            self._refuse(f"{what} is a device array, the kernel takes a {code} by value")
        if code == "?" or not isinstance(value, np.generic):
            self._refuse(
                f"{what} is a Python {type(value).__name__}; it needs a NumPy scalar ({code})"
            )
        if value.dtype != np.dtype(code):
            self._refuse(f"{what} is {value.dtype}, the kernel takes {np.dtype(code)}")
        return np.ctypeslib.as_ctypes_type(value.dtype)(value.item())

    def __call__(
        self,
        grid: Any,
        block: Any,
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        grid, block = self._check_shape(grid, block, int(shared_mem))
        signature = self._info.signature
        if len(args) != len(signature):
            self._refuse(f"{len(args)} arguments given, the kernel takes {len(signature)}")
        values = [
            self._argument(i, a, c) for i, (a, c) in enumerate(zip(args, signature, strict=True))
        ]
        if (stream or current_stream()).is_capturing():
            made = [a.recorded() if isinstance(a, ndarray) else lambda a=a: a for a in args]
            do(lambda: self._launch(grid, block, [a() for a in made], values, int(shared_mem)))
        else:
            do(lambda: self._launch(grid, block, args, values, int(shared_mem)), stream)

    def _launch(
        self, grid: Any, block: Any, args: Sequence[Any], values: Sequence[Any], shared_mem: int
    ) -> None:
        global _launches
        arrays = {id(a._allocation): a._allocation for a in args if isinstance(a, ndarray)}

        def run(seed: int) -> None:
            self._get_library().launch(
                self.name, grid, block, [ctypes.addressof(v) for v in values],
                shared_mem, seed, self._flush, self._emulation.seconds,
            )  # fmt: skip
            for i, a in enumerate(args):
                if isinstance(a, ndarray) and (damage := a._allocation.damage()) is not None:
                    self._refuse(f"argument {i}: {damage}")

        emulation = self._emulation
        _launches += 1
        emulation.launches += 1
        seed = emulation.order_seed + 7919 * emulation.launches
        if not (emulation.order_check or emulation.write_check):
            return run(seed)
        before = {key: a.data.copy() for key, a in arrays.items()}
        run(seed)
        if emulation.write_check:
            self._check_writes(args, before)
        if not emulation.order_check:
            return None
        first = {key: a.data.copy() for key, a in arrays.items()}
        for key, a in arrays.items():
            a.data[:] = before[key]
        run(seed + 1)
        for i, a in enumerate(args):
            if isinstance(a, ndarray):
                key = id(a._allocation)
                differ = np.flatnonzero(first[key] != arrays[key].data)
                if differ.size:
                    offset = int(differ[0]) - (a.data.ptr - a._allocation.address)
                    self._refuse(
                        f"the result depends on the order of threads or blocks: argument {i} "
                        f"differs first at byte {offset} (element {offset // a.itemsize})"
                    )
        return None

    def _check_writes(self, args: Sequence[Any], before: dict[int, np.ndarray]) -> None:
        """Nothing may change but what lies in an array given through a pointer to non-const."""
        writable: dict[int, np.ndarray] = {
            key: np.zeros(bytes_.size, bool) for key, bytes_ in before.items()
        }
        given = [
            (i, a, code[0] == "*")
            for i, (a, code) in enumerate(zip(args, self._info.signature, strict=True))
            if isinstance(a, ndarray)
        ]
        for _, a, mutable in given:
            start = a.data.ptr - a._allocation.address
            if mutable:
                writable[id(a._allocation)][start : start + a.nbytes] = True
        for i, a, _ in given:
            key = id(a._allocation)
            changed = np.flatnonzero((before[key] != a._allocation.data) & ~writable[key])
            if changed.size:
                offset = int(changed[0]) - (a.data.ptr - a._allocation.address)
                self._refuse(
                    f"wrote where it must not: byte {offset} of argument {i}, which has "
                    f"{a.nbytes} bytes and lies in an allocation of {a._allocation.nbytes}"
                )


class RawModule:
    """Compiled at the first get_function, like CuPy's."""

    def __init__(
        self,
        emulation: Emulation,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
        jitify: bool = False,
    ) -> None:
        if code is None or path is not None:
            raise TypeError("the emulator takes code=, not path=")
        if name_expressions is not None or jitify or backend != "nvrtc":
            raise TypeError("the emulator knows neither name_expressions, jitify nor nvcc")
        if not isinstance(options, tuple) or not all(isinstance(o, str) for o in options):
            raise TypeError("options must be a tuple of strings")
        self.code = code
        self.options = options
        self._emulation = emulation

    def _library(self) -> compiling.Library:
        return compiling.build(self.code, self.options, self._emulation.sanitize)

    def compile(self, log_stream: Any = None) -> None:
        self._library()

    def get_function(self, name: str) -> RawKernel:
        refuse_while_capturing(f"{name} is compiled or loaded")
        if name not in self._library().kernels:
            raise CUDARuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        # CuPy always compiles with -ftz=true.
        return RawKernel(self._emulation, name, self._library, "-ftz=false" not in self.options)
