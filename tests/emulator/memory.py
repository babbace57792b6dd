"""Emulated device memory: NumPy bytes between two red zones, poisoned when fresh."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from typing import Any

import numpy as np

from .compile import EmulatorError

ALIGNMENT = 512  # what a CUDA allocation guarantees is 256; CuPy's pool gives 512
GUARD_BYTES = 4096
# Each word of a red zone is a signalling NaN: read, it shows in the result; changed in place by any
# arithmetic, it becomes a quiet one; copied from another array's zone, it has another number in it.
_WORDS = np.arange(GUARD_BYTES // 4, dtype=np.uint32) * np.uint32(0x9E37)
POISON = 0xFF

_live: weakref.WeakSet[Allocation] = weakref.WeakSet()
_serial = itertools.count(1)
_damage: list[str] = []  # found while freeing, where nothing can be raised


class OutOfMemoryError(MemoryError):
    """The emulated device's memory is used up."""


def _asan(name: str, address: int, size: int) -> bool:
    """Tell AddressSanitizer about a red zone; False where its runtime is not loaded."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is None:
        return False
    function(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return True


class Allocation:
    """``nbytes`` bytes of device memory; ``data`` is a uint8 array of exactly these."""

    def __init__(self, nbytes: int, device: Any = None) -> None:
        self.nbytes = nbytes
        self.device = device
        raw = np.empty(nbytes + 2 * GUARD_BYTES + ALIGNMENT, np.uint8)
        start = GUARD_BYTES + -(raw.ctypes.data + GUARD_BYTES) % ALIGNMENT
        self._raw = raw
        self._before = raw[start - GUARD_BYTES : start]
        self.data = raw[start : start + nbytes]
        self._after = raw[start + nbytes : start + nbytes + GUARD_BYTES]
        number = np.uint32(next(_serial) * 0x85EB & 0xFFFFF)
        words = 0xFFA00000 | ((_WORDS ^ number) & np.uint32(0xFFFFF))
        self._guard = words.tobytes()
        self._before[:] = self._after[:] = np.frombuffer(self._guard, np.uint8)
        self.data[:] = POISON
        self.address = int(raw.ctypes.data) + start
        self._watched = all(
            _asan("__asan_poison_memory_region", zone.ctypes.data, GUARD_BYTES)
            for zone in (self._before, self._after)
        )
        _live.add(self)

    def damage(self) -> str | None:
        """What was written outside of the array, or None."""
        if self._watched:  # AddressSanitizer reports the write itself
            return None
        for zone, place in ((self._before, "before"), (self._after, "after")):
            if zone.tobytes() != self._guard:
                wrong = np.flatnonzero(zone != np.frombuffer(self._guard, np.uint8))
                word = int(wrong[0]) & ~3  # a float changed in place may keep its first bytes
                first = self.nbytes + word if place == "after" else word - GUARD_BYTES
                return f"an array of {self.nbytes} bytes was written outside, at byte {first}"
        return None

    def __del__(self) -> None:
        if not hasattr(self, "_watched"):
            return
        if self._watched:
            for zone in (self._before, self._after):
                _asan("__asan_unpoison_memory_region", zone.ctypes.data, GUARD_BYTES)
        elif (damage := self.damage()) is not None:
            _damage.append(damage)
        if self.device is not None:
            self.device.used -= self.nbytes


def check_red_zones() -> None:
    """Raise EmulatorError if anything was written outside of any array, also of freed ones."""
    found = [*_damage, *(d for a in list(_live) if (d := a.damage()) is not None)]
    _damage.clear()
    if found:
        raise EmulatorError("; ".join(found))
