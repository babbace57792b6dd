"""Batches from an LMDB: every record once, in an order that depends on seed and epoch only."""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest
from cli_runner import ROOT
from lmdb_cases import key, pixels, record, write, write_images

from cae_raw.data import lmdb_stream
from cae_raw.data.lmdb_stream import LmdbSplit
from cae_raw.errors import InputError


def numbered(n: int) -> np.ndarray:
    """Images 1x2x2 whose pixels spell their number."""
    return np.arange(n, dtype=">u4").view(np.uint8).reshape(n, 1, 2, 2)


def numbers(images: np.ndarray) -> list[int]:
    return np.ascontiguousarray(images).reshape(len(images), 4).view(">u4")[:, 0].tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9,000 numbered records: two full windows and part of a third one, which ends in a part of a
    block."""
    return write_images(tmp_path_factory.mktemp("stream") / "db", numbered(9000))


@pytest.fixture
def split(path: Path) -> LmdbSplit:
    return LmdbSplit(path)


def drained(threads_before: int) -> bool:
    """Whether the number of threads is back to what it was, within a second."""
    deadline = time.monotonic() + 1
    while threading.active_count() > threads_before and time.monotonic() < deadline:
        time.sleep(0.005)
    return threading.active_count() <= threads_before


def test_length_shape_and_first(split: LmdbSplit) -> None:
    assert len(split) == 9000
    assert split.image_shape == (1, 2, 2)
    assert numbers(split.first(5)) == [0, 1, 2, 3, 4]
    assert len(split.first(10**6)) == 9000
    assert split.first(0).shape == (0, 1, 2, 2)
    assert split.names(7, 9) == ["00000007_images/7.jpg", "00000008_images/8.jpg"]


@pytest.mark.parametrize("batch_size", [1, 64, 100, 128, 4096, 5000, 9000, 10**9])
def test_in_order(split: LmdbSplit, batch_size: int) -> None:
    batches = list(split.limit(700).in_order(1)) if batch_size == 1 else None
    batches = batches or list(split.in_order(batch_size))
    n = 700 if batch_size == 1 else 9000
    assert numbers(np.concatenate(batches)) == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert all(size == min(batch_size, n) for size in sizes[:-1])
    assert 1 <= sizes[-1] <= batch_size
    for batch in batches:
        assert batch.dtype == np.uint8
        assert batch.flags.c_contiguous


@pytest.mark.parametrize("batch_size", [64, 100, 4096, 5000, 10**9])
def test_shuffled_is_a_permutation_whatever_the_batch_size(
    split: LmdbSplit, batch_size: int
) -> None:
    order = numbers(np.concatenate(list(split.shuffled(3, 5, batch_size))))
    assert sorted(order) == list(range(9000))
    assert order == numbers(np.concatenate(list(split.shuffled(3, 5, 77))))


def test_order_is_pinned(split: LmdbSplit) -> None:
    """These values must never change: runs resume by them, on any machine."""
    order = numbers(np.concatenate(list(split.shuffled(0, 0, 1000))))
    digest = hashlib.sha256(np.array(order, ">u4").tobytes()).hexdigest()
    assert order[:4] == [7128, 6970, 4022, 6941]
    assert digest[:16] == "c05c9b71817ac81e"


def test_order_depends_on_seed_and_epoch_only(path: Path) -> None:
    def order(seed: int, epoch: int, threads: int = 2) -> list[int]:
        batches = LmdbSplit(path, threads=threads).shuffled(seed, epoch, 500)
        return numbers(np.concatenate(list(batches)))

    base = order(1, 2)
    assert base == order(1, 2, threads=1) == order(1, 2, threads=5)
    others = [order(2, 2), order(1, 3), order(2, 1), order(-1, 2)]
    assert all(base != other for other in others)


def test_images_of_a_batch_come_from_all_over(split: LmdbSplit) -> None:
    """Neighbours in the file are not neighbours in a batch, and a batch meets many blocks."""
    for batch in split.shuffled(0, 0, 128):
        if len(batch) == 128:
            assert len({n // lmdb_stream.BLOCK for n in numbers(batch)}) > 10
            steps = np.abs(np.diff(numbers(batch)))
            assert np.mean(steps == 1) < 0.1
    first = {n // lmdb_stream.BLOCK for n in numbers(next(split.shuffled(0, 0, 4000)))}
    again = {n // lmdb_stream.BLOCK for n in numbers(next(split.shuffled(0, 1, 4000)))}
    assert len(first) == len(again) == 64 and first != again


@pytest.mark.parametrize("batch_size", [64, 100, 5000])
def test_starting_later_is_skipping(split: LmdbSplit, batch_size: int) -> None:
    whole = list(split.shuffled(4, 1, batch_size))
    for start in (1, len(whole) // 2, len(whole) - 1):
        rest = list(split.shuffled(4, 1, batch_size, start))
        assert [numbers(b) for b in rest] == [numbers(b) for b in whole[start:]]
    assert list(split.shuffled(4, 1, batch_size, len(whole))) == []
    assert [numbers(b) for b in split.in_order(4000, 1)] == [
        list(range(4000, 8000)),
        list(range(8000, 9000)),
    ]


def test_starting_later_reads_little_more(
    split: LmdbSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    gather = split._reader.gather
    monkeypatch.setattr(
        split._reader, "gather", lambda n, p, out: (read.append(len(out)), gather(n, p, out))
    )
    assert len(list(split.shuffled(0, 0, 100, start=85))) == 5
    assert sum(read) == 500


def test_a_small_database(tmp_path: Path) -> None:
    split = LmdbSplit(write_images(tmp_path / "db", numbered(3)))
    assert sorted(numbers(np.concatenate(list(split.shuffled(0, 0, 2))))) == [0, 1, 2]
    assert [len(b) for b in split.shuffled(0, 0, 2)] == [2, 1]
    assert numbers(next(split.in_order(99))) == [0, 1, 2]


def test_limit(split: LmdbSplit) -> None:
    part = split.limit(1000)
    assert len(part) == 1000 and len(split) == 9000 and len(split.limit(10**6)) == 9000
    assert sorted(numbers(np.concatenate(list(part.shuffled(0, 0, 64))))) == list(range(1000))
    assert len(part.labels()) == 1000
    with pytest.raises(InputError, match="1 or more"):
        split.limit(0)
    with pytest.raises(ValueError, match="at least 1 image"):
        next(split.shuffled(0, 0, 0))


def test_parts(split: LmdbSplit) -> None:
    part = split.part(1000, 8000).part(50, 6050)
    assert len(part) == 6000
    assert numbers(part.first(2)) == [1050, 1051]
    assert part.names(5, 6) == ["00001055_images/1055.jpg"]
    assert part.labels().tolist() == [i % 7 - 3 for i in range(1050, 7050)]
    assert numbers(np.concatenate(list(part.in_order(999)))) == list(range(1050, 7050))
    order = numbers(np.concatenate(list(part.shuffled(0, 0, 64))))
    assert sorted(order) == list(range(1050, 7050))
    other = numbers(np.concatenate(list(split.part(0, 6000).shuffled(0, 0, 64))))
    assert [n - 1050 for n in order] == other  # the order depends on the length alone
    assert part.fingerprint() != split.part(1000, 7000).fingerprint()
    empty = split.part(9, 9)
    assert len(empty) == len(empty.labels()) == len(list(empty.shuffled(0, 0, 5))) == 0
    with pytest.raises(IndexError):
        split.part(0, 9001)


def test_labels(split: LmdbSplit) -> None:
    assert split.labels().tolist() == [i % 7 - 3 for i in range(9000)]


def test_batches_are_not_written_to_later(split: LmdbSplit) -> None:
    batches = split.shuffled(0, 0, 64)
    kept = [next(batches) for _ in range(3)]
    copies = [batch.copy() for batch in kept]
    for _ in batches:
        pass
    for batch, copy in zip(kept, copies, strict=True):
        assert np.array_equal(batch, copy)


def test_fingerprint_tells_data_apart(tmp_path: Path, split: LmdbSplit) -> None:
    base = write_images(tmp_path / "a", numbered(300))
    other = numbered(300)
    other[-1] += 1
    marks = [
        LmdbSplit(base).fingerprint(),
        LmdbSplit(base).limit(299).fingerprint(),
        LmdbSplit(base, channel_order="rgb").fingerprint(),
        LmdbSplit(base, resize=(3, 3)).fingerprint(),
        LmdbSplit(write_images(tmp_path / "b", numbered(301))).fingerprint(),
        LmdbSplit(write_images(tmp_path / "c", other)).fingerprint(),
    ]
    assert all(a != b for i, a in enumerate(marks) for b in marks[:i])
    assert LmdbSplit(write_images(tmp_path / "d", numbered(300))).fingerprint() == marks[0]


def test_threads_end_with_the_iterator(split: LmdbSplit) -> None:
    before = threading.active_count()
    batches = split.shuffled(0, 0, 64)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert drained(before)
    batches = split.shuffled(0, 0, 64)
    next(batches)
    del batches  # as when whoever asked raised an exception
    gc.collect()
    assert drained(before)
    list(split.in_order(1000))
    assert drained(before)
    split.shuffled(0, 0, 64)  # never asked for a batch
    assert threading.active_count() <= before


def test_reading_ahead_is_bounded(split: LmdbSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    gather = split._reader.gather
    monkeypatch.setattr(
        split._reader, "gather", lambda n, p, out: (read.append(len(out)), gather(n, p, out))
    )
    batches = split.shuffled(0, 0, 10)
    next(batches)
    time.sleep(0.1)
    assert len(read) <= 1 + lmdb_stream.AHEAD
    batches.close()


def test_errors_arrive_where_batches_are_asked_for(tmp_path: Path) -> None:
    items = [(key(i), record(image)) for i, image in enumerate(numbered(9000))]
    items[4500] = (key(4500), b"\xff")
    split = LmdbSplit(write(tmp_path / "db", items))
    before, seen = threading.active_count(), 0
    with pytest.raises(InputError, match=r"record '00004500_images/4500\.jpg' is not a Datum"):
        for batch in split.in_order(100):
            seen += len(batch)
    assert 4500 - lmdb_stream.GROUP < seen <= 4500
    assert drained(before)


def test_a_change_while_streaming_is_noticed(tmp_path: Path) -> None:
    path = write_images(tmp_path / "db", numbered(9000))
    batches = LmdbSplit(path).shuffled(0, 0, 100)
    next(batches)
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as transaction:
        transaction.put(b"9", b"new")
    with pytest.raises(InputError, match="was changed by another process"):
        for _ in batches:
            pass


def test_two_iterators_at_once(split: LmdbSplit) -> None:
    one, two = split.shuffled(0, 0, 50), split.in_order(50)
    pairs = list(zip(one, two, strict=True))
    assert numbers(np.concatenate([b for _, b in pairs])) == list(range(9000))
    assert sorted(numbers(np.concatenate([a for a, _ in pairs]))) == list(range(9000))


MEMORY = """
import re, sys
from pathlib import Path
from cae_raw.data.lmdb_stream import LmdbSplit
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
split = LmdbSplit(Path(sys.argv[1]))
start = memory("VmHWM")
for batch in split.shuffled(0, 0, 64):
    pass
print(memory("VmHWM") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_database(tmp_path: Path) -> None:
    """400 MB of records; without giving pages back all of them would count as the process's."""
    image = pixels(1, (3, 64, 64))[0]
    path = write(tmp_path / "db", ((key(i), record(image)) for i in range(25_000)))
    command = [sys.executable, "-c", MEMORY, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 260
