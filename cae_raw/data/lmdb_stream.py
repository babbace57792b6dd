"""A data set larger than memory: batches from an LMDB in a shuffled order, read ahead in threads.

The order. Records are cut into blocks of 64 consecutive ones, the blocks are shuffled, and 64
blocks at a time are mixed with each other: the file is read in long pieces, and the images of a
batch still come from all over it. The order is a pure function of the seed, the epoch and the
number of records.

Memory: the batches that are read ahead, and what the process keeps of the mapped file
(`lmdb_pages.MAPPED_BYTES`). It does not depend on the number of records.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.lmdb_datum import DatumReader
from cae_raw.data.lmdb_pages import Ints, Places
from cae_raw.data.order import STREAMING_STREAM, random_words
from cae_raw.errors import InputError

BLOCK, WINDOW = 64, 64  # records, blocks
# Small batches are gathered several at a time: threads that hand Python's lock to each other for
# every 128 images reach 280,000 images/s where these reach 380,000.
GROUP, GROUP_BYTES = 512, 8 << 20
AHEAD = 4  # groups, or parts of groups, that are gathered before they are asked for
FETCHED_BYTES = 256 << 20  # of a window that the system is asked to fetch in advance
THREADS = 2

Batch = NDArray[np.uint8]  # (n, C, H, W)


class LmdbSplit:
    """The images of one LMDB, read when they are needed.

    Args:
        path: the database: its folder, or its file.
        channel_order: how colours are stored there, "bgr" (as Caffe's tools do) or "rgb".
        resize: (height, width) for records of other sizes, None to refuse them.
        progress: hears how many records have been found on opening, and their total.
        threads: that read ahead.

    Raises:
        InputError: on opening and on reading, one line that names the file and the record.
    """

    def __init__(
        self,
        path: Path,
        channel_order: str = "bgr",
        resize: tuple[int, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
        threads: int = THREADS,
    ) -> None:
        self.path, self.threads = path, threads
        self._reader = DatumReader(path, channel_order, resize, progress)
        self._first, self._length = 0, len(self._reader)
        # Where records were chosen, their numbers, ascending, and labels; all if there are none.
        self._chosen: Ints | None = None
        self._chosen_labels = np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._length

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._reader.image_shape

    def limit(self, n: int) -> LmdbSplit:
        """The first n records; all of them when there are fewer. Raises InputError when n < 1."""
        if n < 1:
            raise InputError(f"cannot limit a split to {n} images: give 1 or more")
        return self.part(0, min(n, len(self)))

    def part(self, start: int, stop: int) -> LmdbSplit:
        """Records start to stop of this split, 0 <= start <= stop <= len(self)."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"records {start} to {stop} of {len(self)}")
        part = copy(self)
        part._first, part._length = self._first + start, stop - start
        return part

    def choose(self, positions: Ints, labels: Ints) -> LmdbSplit:
        """The records at these ascending positions of this split, which have these labels."""
        chosen = copy(self)
        chosen._chosen = self._records(np.arange(self._first, self._first + len(self)))[positions]
        chosen._chosen_labels = labels
        chosen._first, chosen._length = 0, len(positions)
        return chosen

    def _records(self, positions: Ints) -> Ints:
        """The numbers of records, by their positions in the database or among those chosen."""
        return positions if self._chosen is None else self._chosen[positions]

    def _places(self, records: Ints) -> Places:
        """Where records lie. Numbers that ascend in short steps are looked up in one go."""
        steps = np.diff(records)
        cuts = [0, *(np.flatnonzero((steps < 0) | (steps > BLOCK)) + 1).tolist(), len(records)]
        ranges, which, before = [], [], 0
        for begin, end in pairwise(cuts):
            start, stop = int(records[begin]), int(records[end - 1]) + 1
            ranges.append((start, stop))
            which.append(records[begin:end] + (before - start))
            before += stop - start
        return self._reader.file.places(ranges).at(np.concatenate(which))

    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other data: shape, number, and a digest of some records."""
        facts = {**self._reader.fingerprint(), "first": self._first, "used": len(self)}
        if self._chosen is not None:
            numbers = self._chosen[self._first : self._first + len(self)].astype("<i8")
            facts["sha256_of_numbers"] = hashlib.sha256(numbers.tobytes()).hexdigest()
        return facts

    def first(self, n: int) -> Batch:
        """The first n images in the order of their keys, or all where there are fewer."""
        n = min(n, len(self))
        images = np.empty((n, *self.image_shape), np.uint8)
        if n:
            records = self._records(np.arange(self._first, self._first + n))
            self._reader.gather(records, self._places(records), images)
            self._reader.file.check_unchanged()
        return images

    def names(self, start: int, stop: int) -> list[str]:
        """The keys of records start to stop, as text."""
        return [key.decode("utf-8", "backslashreplace") for key in self.keys(start, stop)]

    def keys(self, start: int, stop: int) -> list[bytes]:
        """The same as they are stored."""
        file, first = self._reader.file, self._first
        if self._chosen is None:
            return file.keys(first + start, first + stop)
        records = self._chosen[first + start : first + stop].tolist()
        return [key for record in records for key in file.keys(record, record + 1)]

    def labels(self) -> NDArray[np.int64] | None:
        """All labels, int64 (len(self),), if there are any; this reads all of the records."""
        end = self._first + len(self)
        if self._chosen is not None:
            return self._chosen_labels[self._first : end]
        parts = [
            self._reader.labels(start, min(start + BLOCK, end))
            for start in range(self._first, end, BLOCK)
        ]
        self._reader.file.check_unchanged()
        return np.concatenate([np.empty(0, np.int64), *parts])

    def in_order(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches of uint8 images in the order of the keys, from batch `start` on.

        The last one may be smaller. A batch is not written to after it has been handed out.
        """
        return self._batches(_windows(self._first, len(self), None), batch_size, start)

    def shuffled(self, seed: int, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Every record once, in the order of this seed and epoch, from batch `start` on.

        The last batch may be smaller, and none is written to after it has been handed out. What
        cannot be read raises its InputError where the batch is asked for.
        """
        windows = _windows(self._first, len(self), (seed, epoch))
        return self._batches(windows, batch_size, start)

    def _batches(self, windows: list[_Window], batch_size: int, start: int) -> Iterator[Batch]:
        if batch_size < 1:
            raise ValueError(f"a batch needs at least 1 image, not {batch_size}")
        skip = start * batch_size
        while windows and skip >= windows[0].length:
            skip -= windows.pop(0).length
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="lmdb")
        try:
            room = min(GROUP, GROUP_BYTES // prod(self.image_shape))
            group = batch_size * max(1, room // batch_size)
            for images in self._read_ahead(pool, windows, group, skip):
                for i in range(0, len(images), batch_size):
                    yield images[i : i + batch_size]
        finally:  # also when whoever asked loses interest, or this generator is collected
            pool.shutdown(cancel_futures=True)

    def _read_ahead(
        self, pool: ThreadPoolExecutor, windows: list[_Window], batch_size: int, skip: int
    ) -> Iterator[Batch]:
        """The pool takes its work in the order in which it is handed out, so a gather finds that
        its window is being located, if it is not yet, and can wait for that: no deadlock."""
        located = {
            i: pool.submit(self._locate, window, None) for i, window in enumerate(windows[:2])
        }
        pending: deque[tuple[_Piece, Batch, Future[None]]] = deque()
        pieces = _pieces([window.length for window in windows], batch_size, skip)
        piece = next(pieces, None)
        batch: Batch | None = None
        while piece is not None or pending:
            while piece is not None and len(pending) < AHEAD and piece.window in located:
                if batch is None:
                    batch = np.empty((piece.batch_length, *self.image_shape), np.uint8)
                rows = batch[piece.at : piece.at + piece.length]
                gather = pool.submit(self._gather, located[piece.window], piece.first, rows)
                pending.append((piece, batch, gather))
                if piece.ends_batch:
                    batch = None
                piece = next(pieces, None)
            done, images, gathered = pending.popleft()
            gathered.result()
            if done.ends_window:
                former, following = located.pop(done.window).result(), done.window + 2
                if following < len(windows):
                    located[following] = pool.submit(self._locate, windows[following], former)
            if done.ends_batch:
                yield images

    def _locate(self, window: _Window, former: _Located | None) -> _Located:
        """Find a window's records, and give back the memory of a former one."""
        file = self._reader.file
        if former is not None:
            file.give_back(former.ranges, int(former.places.size.sum()))
        file.check_unchanged()
        records = self._records(window.numbers())
        places = self._places(records)
        ranges, at = [], 0
        for start, stop in window.blocks:
            block = places.at(slice(at, at + stop - start))
            ranges.append((int(block.offset.min()), int((block.offset + block.size).max())))
            at += stop - start
        if places.size.sum() <= FETCHED_BYTES:
            for begin, end in ranges:
                file.want(begin, end)
        order = window.order()
        return _Located(records[order], places.at(order), ranges)

    def _gather(self, located: Future[_Located], first: int, rows: Batch) -> None:
        numbers, places, _ = located.result()
        part = slice(first, first + len(rows))
        try:
            self._reader.gather(numbers[part], places.at(part), rows)
        finally:  # what was read, or refused, is sound if nobody has written since
            if self._reader.file.overtaken():
                self._reader.file.check_unchanged()


class _Located(NamedTuple):
    """Records of a window in the order in which they are handed out, and where its blocks lie."""

    numbers: Ints
    places: Places
    ranges: list[tuple[int, int]]


class _Piece(NamedTuple):
    """Part of a batch that comes from one window."""

    window: int
    first: int  # place in the window's order
    length: int
    at: int  # row in the batch
    batch_length: int
    ends_window: bool
    ends_batch: bool


def _pieces(lengths: list[int], batch_size: int, skip: int) -> Iterator[_Piece]:
    """Cut the sequence of windows, less its first `skip` records, into batches."""
    left = sum(lengths) - skip
    size, at = min(batch_size, left), 0
    for window, length in enumerate(lengths):
        first, skip = skip, 0
        while first < length:
            count = min(size - at, length - first)
            ends = first + count == length, at + count == size
            yield _Piece(window, first, count, at, size, *ends)
            first, at, left = first + count, at + count, left - count
            if ends[1]:
                size, at = min(batch_size, left), 0


class _Window(NamedTuple):
    """Blocks that are mixed with each other, and the seed and index that name how."""

    blocks: list[tuple[int, int]]  # first record, and the one after the last
    length: int  # records
    key: tuple[int, int] | None

    def numbers(self) -> Ints:
        """The records of the blocks."""
        return np.concatenate([np.arange(*block) for block in self.blocks])

    def order(self) -> Ints:
        """Positions among the records of the blocks, in the order in which they are handed out."""
        if self.key is None:
            return np.arange(self.length)
        return _permutation(self.length, *self.key)


def streaming_order(n: int, seed: int, epoch: int) -> Ints:
    """The order in which `LmdbSplit.shuffled` hands out n images, int64 (n,)."""
    windows = _windows(0, n, (seed, epoch))
    parts = [window.numbers()[window.order()] for window in windows]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _windows(start: int, n: int, key: tuple[int, int] | None) -> list[_Window]:
    """The windows of an epoch over n records, shuffled by key = (seed, epoch), or in order.

    One stream of random words orders the blocks, and one more each window.
    """
    count = -(-n // BLOCK)
    order = np.arange(count) if key is None else _permutation(count, key[0], key[1] << 32)
    windows: list[_Window] = []
    for i in range(0, count, WINDOW):
        numbers = order[i : i + WINDOW].tolist()
        blocks = [
            (start + number * BLOCK, start + min((number + 1) * BLOCK, n)) for number in numbers
        ]
        inner = None if key is None else (key[0], (key[1] << 32) + 1 + len(windows))
        windows.append(_Window(blocks, sum(stop - first for first, stop in blocks), inner))
    return windows


def _permutation(n: int, seed: int, index: int) -> NDArray[np.int64]:
    words = random_words(STREAMING_STREAM, seed, index, n)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
