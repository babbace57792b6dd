"""Batches reach the device whole and in order, whatever their sizes, and buffers go round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import emulator
import numpy as np
import pytest
from kernel_checks import gpu

from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.backends.upload import BUFFERS, uploaded


@pytest.fixture(params=["emulator", "gpu"])
def backend(request: pytest.FixtureRequest) -> CudaBackend:
    if request.param == "gpu":
        found = gpu()
        if isinstance(found, str):
            pytest.skip(f"no GPU: {found}")
        return found
    return CudaBackend(emulator.emulated_cupy())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 11])
def test_every_batch_arrives(backend: CudaBackend, count: int) -> None:
    rng = np.random.default_rng(count)
    sizes = [5] * (count - 1) + [2] if count else []
    batches = [rng.integers(0, 256, (n, 2, 3), dtype=np.uint8) for n in sizes]
    arrived = [backend.to_numpy(a).copy() for a in uploaded(backend, iter(batches))]
    assert len(arrived) == count
    for found, sent in zip(arrived, batches, strict=True):
        np.testing.assert_array_equal(found, sent)


def test_the_source_may_use_its_memory_again(backend: CudaBackend) -> None:
    def source() -> Iterator[np.ndarray]:
        batch = np.empty((4, 7), np.uint8)
        for k in range(9):
            batch.fill(k)
            yield batch

    for k, array in enumerate(uploaded(backend, source())):
        assert (backend.to_numpy(array) == k).all()


def test_memory_is_allocated_once(backend: CudaBackend) -> None:
    places: set[Any] = set()
    for array in uploaded(backend, iter([np.zeros((3, 5), np.uint8)] * 20)):
        places.add(array.data.ptr)
    assert len(places) == BUFFERS
