"""Clocks, and taking turns on them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Work = Callable[[], Any]
Milliseconds = Callable[[Work], float]
# Many times the second-level cache of any GPU so far, and so much that overwriting it takes longer
# than Python takes to prepare a launch: else the gap before the kernel would be timed as well.
FLUSH_BYTES = 1 << 30


def host_milliseconds(work: Work) -> float:
    """Of work that is done when the call returns."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


class DeviceClock:
    """Time on a GPU alone, between two events around the work.

    With `flush` the second-level cache is overwritten before each run, and so the device is busy
    while the host prepares the launch: the time is that of the device alone.

    Args:
        backend: a CUDA backend.
        flush_bytes: that are overwritten; at most an eighth of the device's memory.
    """

    def __init__(self, backend: Any, flush_bytes: int = FLUSH_BYTES) -> None:
        self.cupy = backend.cupy
        _, memory = self.cupy.cuda.Device(backend.device).mem_info
        self._flush = backend.empty((min(flush_bytes, memory // 8),), np.uint8)

    def milliseconds(self, work: Work, *, flush: bool = True) -> float:
        """One run of `work`."""
        before, after = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        if flush:
            self._flush.fill(0)
        before.record()
        work()
        after.record()
        after.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(before, after))


def take_turns(
    works: Mapping[str, Work],
    rounds: int,
    milliseconds: Milliseconds = host_milliseconds,
    *,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Milliseconds of each work in each round.

    Every round runs each of them once, so that a change in the machine's speed hits all alike. The
    pause before a turn lets the threads of the one before go to sleep: OpenMP's spin for a while
    after their work is done.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(pause)
            times[name].append(milliseconds(work))
    return times


def summary(times: list[float]) -> dict[str, Any]:
    """Median, quartiles and number of times in milliseconds."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return {"ms": statistics.median(times), "ms_quartiles": [low, high], "runs": len(times)}


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """max|actual - expected| / max|expected|; infinite for another shape."""
    if expected.shape != actual.shape:
        return float("inf")
    largest = float(np.max(np.abs(expected.astype(np.float64)), initial=0))
    difference = np.max(np.abs(actual.astype(np.float64) - expected), initial=0)
    return float(difference) / (largest or 1.0)
