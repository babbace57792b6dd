"""The device that is measured, and how: CUDA events, a flushed cache, medians."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
# Many times the second-level cache of any GPU so far, and so much that overwriting it takes longer
# than Python takes to prepare a launch: else the gap before the kernel would be timed as well.
FLUSH_BYTES = 1 << 30


@dataclass
class Bench:
    """A CuPy module and a backend on it.

    Args:
        emulated: kernels run on the CPU, so that figures say nothing about a GPU.
    """

    cupy: Any
    backend: Any
    emulated: bool
    deadline: float

    def __post_init__(self) -> None:
        _, memory = self.cupy.cuda.Device(self.backend.device).mem_info
        size = 1 << 12 if self.emulated else min(FLUSH_BYTES, memory // 8)
        self._flush = self.backend.empty((size,), np.uint8)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def milliseconds(self, work: Callable[[], Any], *, flush: bool = True) -> dict[str, Any]:
        """Median, quartiles and number of single timed runs of `work`, after a warm-up.

        With `flush` the second-level cache is overwritten before each run, and so the device is
        busy while the host prepares the launch: the time is that of the device alone.
        """
        warm_up, most, budget = (0, 2, 0.0) if self.emulated else (5, 200, 0.5)
        for _ in range(warm_up):
            work()
        self.backend.synchronize()
        event = self.cupy.cuda.Event
        pairs: list[tuple[Any, Any]] = []
        started = time.monotonic()
        while len(pairs) < most and (len(pairs) < 20 or time.monotonic() - started < budget):
            before, after = event(), event()
            if flush:
                self._flush.fill(0)
            before.record()
            work()
            after.record()
            after.synchronize()
            pairs.append((before, after))
            if time.monotonic() > self.deadline:
                break
        elapsed = self.cupy.cuda.get_elapsed_time
        return summary([elapsed(before, after) for before, after in pairs])


def summary(times: list[float]) -> dict[str, Any]:
    """Of times in milliseconds."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {"ms": statistics.median(times), "ms_quartiles": [low, high], "runs": len(times)}


def open_bench(emulated: bool, seconds: float) -> Bench:
    """The GPU, or the emulator in place of it.

    Raises:
        InputError: where no GPU runs a kernel.
    """
    deadline = time.monotonic() + seconds
    if emulated:
        sys.path.insert(0, str(ROOT / "tests"))
        import emulator

        from cae_raw.backends.cuda_backend import CudaBackend

        cupy = emulator.emulated_cupy(sanitize="none")
        return Bench(cupy, CudaBackend(cupy), True, deadline)
    from cae_raw.backends.probe import open_cuda

    backend = open_cuda(0)
    return Bench(backend.cupy, backend, False, deadline)


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """max|actual - expected| / max|expected|; infinite for another shape."""
    if expected.shape != actual.shape:
        return float("inf")
    largest = float(np.max(np.abs(expected.astype(np.float64)), initial=0))
    difference = np.max(np.abs(actual.astype(np.float64) - expected), initial=0)
    return float(difference) / (largest or 1.0)
