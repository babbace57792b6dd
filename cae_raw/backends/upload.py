"""Host batches to a GPU while it computes: pinned memory, a stream of its own, three buffers.

    host      fill pinned k+1           fill pinned k+2
    copying   .......copy k+1 .......   ....... copy k+2
    computing  work on k ............    work on k+1 .........

A copy from ordinary memory makes the host wait; one from pinned memory runs beside the kernels. The
device buffers are allocated once and go round: a copy into one waits for an event that says that
work on its last batch is done, so nothing depends on when a memory pool hands memory out again.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from cae_raw.backends.cuda_backend import CudaBackend

Array = Any

BUFFERS = 3  # one is worked on, one is copied to, one is waited for


class _Buffer:
    """Room for one batch on either side, and the events that say when it may be touched."""

    def __init__(self, cupy: Any, shape: tuple[int, ...]) -> None:
        size = prod(shape)
        self.pinned = cupy.cuda.alloc_pinned_memory(size)
        self.host = np.frombuffer(self.pinned, np.uint8, size).reshape(shape)
        self.device = cupy.empty(shape, np.uint8)
        self.copied = cupy.cuda.Event(disable_timing=True)
        self.free = cupy.cuda.Event(disable_timing=True)
        # Its memory may have been given up by work that is still to be done.
        self.free.record(cupy.cuda.get_current_stream())


def uploaded(backend: CudaBackend, batches: Iterator[np.ndarray]) -> Iterator[Array]:
    """The batches, uint8 (n, ...) with n at most that of the first, as arrays on the device.

    Each is valid until the next one is asked for; work on it must be on the current stream.
    """
    cupy = backend.cupy
    # The device is entered around each piece of work and never across a yield: the caller may be
    # on another one.
    device = cupy.cuda.Device(backend.device)
    with device:
        copying = cupy.cuda.Stream(non_blocking=True)
        computing = cupy.cuda.get_current_stream()
    ring: list[_Buffer] = []
    waiting: list[tuple[_Buffer, int]] = []  # copied, or being copied; at most two

    def copy(k: int, batch: np.ndarray) -> tuple[_Buffer, int]:
        if k < BUFFERS:
            ring.append(_Buffer(cupy, batch.shape if k == 0 else ring[0].host.shape))
        buffer, n = ring[k % BUFFERS], len(batch)
        buffer.copied.synchronize()  # the pinned side is free again
        copying.wait_event(buffer.free)  # and so will be the device side
        buffer.host[:n] = batch
        buffer.device[:n].set(buffer.host[:n], stream=copying)
        buffer.copied.record(copying)
        return buffer, n

    def lend() -> Iterator[Array]:
        buffer, n = waiting.pop(0)
        with device:
            computing.wait_event(buffer.copied)
        yield buffer.device[:n]
        with device:
            buffer.free.record(computing)

    try:
        for k, batch in enumerate(batches):
            with device:
                waiting.append(copy(k, batch))
            if len(waiting) == 2:
                yield from lend()
        if waiting:
            yield from lend()
    finally:
        with device:
            copying.synchronize()  # no copy may outlive the buffers
