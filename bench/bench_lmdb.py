"""Reading and decoding an epoch of an LMDB of 64x64 images.

    pytest bench/bench_lmdb.py --benchmark-only

`lmdb_throughput.py` puts it beside a bare cursor scan, and measures memory.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from lmdb_throughput import check_equal, make

from cae_raw.data.lmdb_stream import LmdbSplit

BATCH = 128


@pytest.fixture(scope="module")
def split(tiny: bool, tmp_path_factory: pytest.TempPathFactory) -> LmdbSplit:
    path: Path = tmp_path_factory.mktemp("lmdb") / "records.lmdb"
    make(path, 300 if tiny else 10_000)
    found = LmdbSplit(path)
    check_equal(path, found)
    return found


def test_shuffled(benchmark: Callable[..., Any], split: LmdbSplit) -> None:
    benchmark.group = "LMDB, one epoch"
    epochs = count()
    read = benchmark(lambda: sum(map(len, split.shuffled(0, next(epochs), BATCH))))
    assert read == len(split)


def test_in_order(benchmark: Callable[..., Any], split: LmdbSplit) -> None:
    benchmark.group = "LMDB, one epoch"
    assert benchmark(lambda: sum(map(len, split.in_order(BATCH)))) == len(split)
