"""The emulated ``cupy.cuda``: devices, streams, events, memory pools and the runtime's queries."""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Callable, Iterator
from typing import Any

from .array import Allocator, DeviceState, MemoryPointer, allocate, allocators
from .kernel import DEFAULT_SHARED
from .memory import OutOfMemoryError
from .streams import CUDARuntimeError, Event, Graph, Stream, current_stream, drain


class PinnedMemory(bytearray):
    """Host memory with CuPy's attributes."""

    @property
    def ptr(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self))


def make_module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


def make_cuda(states: list[DeviceState]) -> types.ModuleType:
    chosen = [0]

    def state(index: int) -> DeviceState:
        if not 0 <= index < len(states):
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        return states[index]

    class Device:
        def __init__(self, device: Any = None) -> None:
            self.id = chosen[0] if device is None else int(device)
            self._previous: list[int] = []

        def __int__(self) -> int:
            return self.id

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Device) and other.id == self.id

        def __hash__(self) -> int:
            return self.id

        def use(self) -> None:
            state(self.id)
            chosen[0] = self.id

        def __enter__(self) -> Any:
            self._previous.append(chosen[0])
            self.use()
            return self

        def __exit__(self, *_: Any) -> None:
            chosen[0] = self._previous.pop()

        def synchronize(self) -> None:
            state(self.id)
            drain()

        compute_capability = property(lambda self: state(self.id).compute_capability)
        pci_bus_id = property(lambda self: f"0000:0{self.id}:00.0")

        @property
        def mem_info(self) -> tuple[int, int]:
            return state(self.id).total - state(self.id).used, state(self.id).total

        @property
        def attributes(self) -> dict[str, int]:
            device = state(self.id)
            major, minor = int(device.compute_capability[:-1]), int(device.compute_capability[-1])
            return {
                "MultiProcessorCount": device.multiprocessors,
                "WarpSize": 32,
                "MaxThreadsPerBlock": 1024,
                "MaxSharedMemoryPerBlock": DEFAULT_SHARED,
                "MaxSharedMemoryPerBlockOptin": device.max_shared,
                "MaxThreadsPerMultiProcessor": 2048,
                "MaxRegistersPerBlock": 65536,
                "MaxRegistersPerMultiprocessor": 65536,
                "ComputeCapabilityMajor": major,
                "ComputeCapabilityMinor": minor,
            }

    def properties(index: int) -> dict[str, Any]:
        device = state(index)
        return {
            "name": b"Emulated device",
            "major": int(device.compute_capability[:-1]),
            "minor": int(device.compute_capability[-1]),
            "multiProcessorCount": device.multiprocessors,
            "totalGlobalMem": device.total,
            "sharedMemPerBlock": DEFAULT_SHARED,
            "warpSize": 32,
        }

    runtime = make_module(
        "cupy.cuda.runtime",
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: len(states),
        getDevice=lambda: chosen[0],
        setDevice=lambda index: Device(index).use(),
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        getDeviceProperties=properties,
        deviceSynchronize=drain,
        memGetInfo=lambda: Device().mem_info,
    )
    memory = make_module("cupy.cuda.memory", OutOfMemoryError=OutOfMemoryError)
    return make_module(
        "cupy.cuda",
        Device=Device,
        Stream=Stream,
        Event=Event,
        Graph=Graph,
        MemoryPool=lambda: MemoryPool(lambda: state(chosen[0])),
        using_allocator=using_allocator,
        runtime=runtime,
        driver=make_module("cupy.cuda.driver", CUDADriverError=CUDADriverError),
        memory=memory,
        MemoryPointer=MemoryPointer,
        is_available=lambda: len(states) > 0,
        get_current_stream=current_stream,
        get_elapsed_time=lambda start, end: 1e3 * (end.time - start.time),
        alloc_pinned_memory=lambda size: PinnedMemory(max(int(size), 1)),
        get_device_id=lambda: chosen[0],
        _current=lambda: state(chosen[0]),
    )


class CUDADriverError(RuntimeError):
    """Stands for cupy.cuda.driver.CUDADriverError, which a refused launch raises."""


@contextlib.contextmanager
def using_allocator(allocator: Allocator) -> Iterator[None]:
    """For a while, new arrays take their memory from `allocator`."""
    allocators.append(allocator)
    try:
        yield
    finally:
        allocators.pop()


class MemoryPool:
    """Bytes in use; nothing is kept back for reuse."""

    def __init__(self, current: Callable[[], DeviceState]) -> None:
        self._current = current

    def malloc(self, size: int) -> MemoryPointer:
        return allocate(self._current(), size)

    def used_bytes(self) -> int:
        return self._current().used

    def total_bytes(self) -> int:
        return self._current().used

    def free_all_blocks(self, stream: Any = None) -> None:
        pass

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if size:
            self._current().total = int(size)
