"""The device that is measured, and how: CUDA events, a flushed cache, medians."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cae_raw.measure.clock import FLUSH_BYTES, DeviceClock, summary

ROOT = Path(__file__).resolve().parent.parent.parent


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
        self._clock = DeviceClock(self.backend, 1 << 12 if self.emulated else FLUSH_BYTES)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def milliseconds(self, work: Callable[[], Any], *, flush: bool = True) -> dict[str, Any]:
        """Median, quartiles and number of single timed runs of `work`, after a warm-up.

        `flush` as in `DeviceClock`.
        """
        warm_up, most, budget = (0, 2, 0.0) if self.emulated else (5, 200, 0.5)
        for _ in range(warm_up):
            work()
        self.backend.synchronize()
        times: list[float] = []
        started = time.monotonic()
        while len(times) < most and (len(times) < 20 or time.monotonic() - started < budget):
            times.append(self._clock.milliseconds(work, flush=flush))
            if time.monotonic() > self.deadline:
                break
        return summary(times)


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
