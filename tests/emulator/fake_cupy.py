"""A stand-in for the module ``cupy``, below which kernels run on the CPU.

Only what moves and owns memory is here, and RawModule. There is no arithmetic and no implicit
conversion to NumPy, so that nothing can be computed outside of the project's own kernels. Where
CuPy is careless, this module is strict or just as careless, as noted at the place.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from .array import DeviceState, empty_on, ndarray
from .cuda_module import MemoryPool, make_cuda, make_module
from .kernel import Emulation, RawKernel, RawModule

_DTYPES = "bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"


def make(
    order_seed: int = 0,
    sanitize: str | None = "undefined",
    order_check: bool = False,
    write_check: bool = False,
    seconds: int = 300,
    multiprocessors: int = 4,
    devices: int = 1,
    total_memory: int = 8 << 30,
    compute_capability: str = "90",
) -> types.ModuleType:
    """A module like ``cupy`` with ``devices`` emulated devices."""
    states = [
        DeviceState(i, total_memory, multiprocessors, compute_capability) for i in range(devices)
    ]
    cuda = make_cuda(states)
    emulations = {
        id(s): Emulation(s, order_seed + i, sanitize, order_check, write_check, seconds)
        for i, s in enumerate(states)
    }

    def emulation() -> Emulation:
        return emulations[id(cuda._current())]

    # Code that keeps something per array class must be able to tell two emulations apart.
    own_ndarray = type("ndarray", (ndarray,), {})

    def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
        return empty_on(own_ndarray, cuda._current(), shape, dtype)

    def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
        result = empty(shape, dtype)
        result.fill(0)
        return result

    def asarray(a: Any, dtype: Any = None, order: Any = None, blocking: bool = False) -> ndarray:
        if isinstance(a, ndarray):
            if dtype is not None and a.dtype != np.dtype(dtype):
                raise TypeError("the emulator converts no dtypes on the device")
            return a
        host = np.asarray(a, dtype=dtype)
        result = empty(host.shape, host.dtype)
        result.set(host)
        return result

    def array(a: Any, dtype: Any = None, copy: bool = True, order: Any = None) -> ndarray:
        return asarray(a, dtype).copy() if isinstance(a, ndarray) else asarray(a, dtype)

    def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
        result = asarray(a, dtype)
        return result if result.flags.c_contiguous else result.copy()

    def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None) -> np.ndarray:
        return a.get(out=out) if isinstance(a, ndarray) else np.asarray(a)

    def copyto(dst: ndarray, src: Any) -> None:
        dst[...] = src

    def raw_module(**arguments: Any) -> RawModule:
        return RawModule(emulation(), **arguments)

    def raw_kernel(code: str, name: str, options: tuple[str, ...] = (), **more: Any) -> RawKernel:
        module = RawModule(emulation(), code=code, options=options, **more)
        return RawKernel(emulation(), name, module._library, "-ftz=false" not in options)

    return make_module(
        "cupy",
        __version__="14.2.0",
        cuda=cuda,
        ndarray=own_ndarray,
        empty=empty,
        zeros=zeros,
        empty_like=lambda a, dtype=None: empty(a.shape, dtype or a.dtype),
        zeros_like=lambda a, dtype=None: zeros(a.shape, dtype or a.dtype),
        asarray=asarray,
        array=array,
        ascontiguousarray=ascontiguousarray,
        asnumpy=asnumpy,
        copyto=copyto,
        RawModule=raw_module,
        RawKernel=raw_kernel,
        get_default_memory_pool=lambda: MemoryPool(cuda._current),
        get_default_pinned_memory_pool=lambda: MemoryPool(cuda._current),
        get_array_module=lambda *a: np,
        **{name: getattr(np, name) for name in _DTYPES.split()},
    )


@contextlib.contextmanager
def installed(module: types.ModuleType) -> Iterator[types.ModuleType]:
    """For a while, ``import cupy`` gives ``module``."""
    names = {
        "cupy": module,
        "cupy.cuda": module.cuda,
        "cupy.cuda.runtime": module.cuda.runtime,
        "cupy.cuda.driver": module.cuda.driver,
        "cupy.cuda.memory": module.cuda.memory,
    }
    old = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield module
    finally:
        for name, previous in old.items():
            if previous is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = previous


def default_sanitizer() -> str | None:
    """``CAE_RAW_EMULATOR_SANITIZE`` ("none", "undefined", "address,undefined"), else undefined."""
    chosen = os.environ.get("CAE_RAW_EMULATOR_SANITIZE", "undefined")
    return None if chosen == "none" else chosen
