"""Finding the records of an LMDB file by its pages, every number checked before it is used.

Why not through liblmdb: it trusts what is in the file, so that a truncated or damaged one ends the
process with a signal instead of a message; it lets the process appear to grow by all that was
read; and it opens a path once per process only. Here branch and leaf pages are read with plain
reads and checked, on opening and on every use; values then come from a memory map, of which a
bounded part is kept. No lock file and no write permission are needed. Databases are written with
liblmdb, see `convert`.

The layout is that of LMDB 0.9 (data version 1), for 64-bit machines: pages of a fixed size, the
first two of them meta pages of which the one with the higher transaction number counts; a tree
of branch and leaf pages; and values too long for a leaf in runs of overflow pages.

Snapshots: a writer never overwrites pages of the last commit, only those of older ones. What was
read is therefore sound if the last commit is still the one of the beginning, and this is
checked (`check_unchanged`): the transaction that another process has open does no harm, a commit
is reported. What a reader cannot survive is a program that truncates the file in place meanwhile.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.lmdb_meta import META_BYTES, Meta, damaged, find_database, parse_meta
from cae_raw.data.local import reason
from cae_raw.errors import InputError

NO_PAGE = 2**64 - 1
HEADER, NODE = 16, 8  # bytes before a page's contents, before a node's key
BRANCH, LEAF = 1, 2  # kinds of page
BIG, SUBDATA, DUPDATA = 1, 2, 4  # kinds of node in a leaf
MAPPED_AROUND = 1 << 20  # how far Linux may map around a byte that is looked at
MAPPED_BYTES = 256 << 20  # of the map; when more were looked at, all are given back

Ints = NDArray[np.int64]
Damage = Callable[[str], None]


class Places(NamedTuple):
    """Where values lie in the file: byte offsets and sizes; `big` marks those in overflow pages."""

    offset: Ints
    size: Ints
    big: NDArray[np.bool_]

    def at(self, which: slice | Ints | NDArray[np.bool_]) -> Places:
        """Some of them."""
        return Places(self.offset[which], self.size[which], self.big[which])

    def one(self, i: int) -> tuple[int, int, bool]:
        """Offset, size and kind of one of them."""
        return int(self.offset[i]), int(self.size[i]), bool(self.big[i])


class LmdbFile:
    """The records of a database in the order of their keys, numbered from 0.

    Opening reads and checks all branch and leaf pages, but no values. Afterwards 16 bytes of
    memory per leaf page (some fifty to a hundred records) are held. May be used from several
    threads at once, and after a fork.

    `bytes` is the file in memory, read-only uint8 (size,), for the values at `places`.

    Args:
        path: a folder with data.mdb, or a database in a single file.
        damage: called with a line per damaged page, which is then left out; by default the first
            one is raised.
        progress: called with the number of records found so far, and their total.

    Raises:
        InputError: if there is no database that can be read; the line says why.
    """

    def __init__(
        self,
        path: Path,
        damage: Damage | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.path, self.file = path, find_database(path)
        try:
            descriptor = os.open(self.file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InputError(f"cannot read {self.file}: {reason(error)}") from None
        self._descriptor, self._lock = descriptor, threading.Lock()
        weakref.finalize(self, os.close, descriptor)
        self.size = os.fstat(descriptor).st_size
        self.meta = self._read_meta()
        self._damage, self._visited = damage, 0
        leaves: list[int] = []
        counts: list[int] = []
        total = 0
        if self.meta.root != NO_PAGE:
            for pages, records in self._walk(self.meta.root, self.meta.depth):
                leaves += pages
                counts += records
                total += sum(records)
                if progress is not None:
                    progress(total, self.meta.entries)
        self._leaves = np.array(leaves, np.int64)
        self._ends = np.cumsum(np.array(counts, np.int64))
        self.bytes, self._map = self._mapped()
        self._taken = 0
        if total != self.meta.entries:
            self._report(
                self.damaged(f"{self.meta.entries} records are announced, {total} can be found")
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def check_unchanged(self) -> None:
        """Raise InputError if another process has changed the database since it was opened."""
        if os.fstat(self._descriptor).st_size >= self.size and not self.overtaken():
            return
        raise InputError(
            f"{self.path} was changed by another process while it was being read: wait until "
            "it is complete, then start again"
        )

    def overtaken(self) -> bool:
        """Whether there is a newer commit, seen in the map: quick enough to be asked often."""
        numbers = (
            struct.unpack_from("<Q", self._map, at + META_BYTES - 8)[0]
            for at in (0, self.meta.page_size)
        )
        return max(numbers) != self.meta.transaction

    def keys(self, start: int, stop: int) -> list[bytes]:
        """The keys of records start to stop."""
        leaves, which = self._leaves_of([(start, stop)])
        data = self._pages(leaves)
        nodes = self._nodes(data, leaves, LEAF)
        flat, size = data.reshape(-1), self.meta.page_size
        begins = nodes.page[which] * size + nodes.at[which] + NODE
        ends = begins + nodes.key_size[which]
        return [flat[i:j].tobytes() for i, j in zip(begins.tolist(), ends.tolist(), strict=True)]

    def places(self, ranges: Sequence[tuple[int, int]]) -> Places:
        """Where the values of records start to stop lie, for each (start, stop), all in one.

        Every place is inside the file. Raises InputError when the pages are no longer sound.
        """
        leaves, which = self._leaves_of(ranges)
        return self._values(leaves)[0].at(which)

    def value(self, offset: int, size: int, big: bool) -> bytes:
        """One value at its place."""
        page = offset // self.meta.page_size
        # The header of an overflow page repeats its number, which tells pages that got lost.
        if big and self.bytes[offset - HEADER : offset - 8].view("<i8")[0] != page:
            raise self.damaged(f"page {page} is not what it should be")
        return self.bytes[offset : offset + size].tobytes()

    def taken(self, count: int) -> None:
        """Say that so many of `bytes` were looked at: when they are many, all are given back.

        They stay in the system's page cache, but no longer count as this process's memory.
        """
        self._taken += count
        if self._taken > MAPPED_BYTES:
            self._give_back(0, self.size)
            self._taken = 0

    def give_back(self, ranges: Sequence[tuple[int, int]], count: int) -> None:
        """Parts of `bytes`, of which so many were looked at, are no longer needed."""
        for begin, end in ranges:
            self._give_back(begin, end)
        # A part is always left: what the system mapped beside the ranges, unasked, adds up.
        self._taken -= count * 3 // 4

    def _give_back(self, begin: int, end: int) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            begin -= begin % MAPPED_AROUND
            end = min(end + -end % MAPPED_AROUND, self.size)
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def want(self, begin: int, end: int) -> None:
        """Have the system fetch a part of the file that will soon be looked at."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def read_into(self, buffer: NDArray[np.uint8], offset: int) -> None:
        """Fill a contiguous buffer from the file, without the map."""
        view, done = buffer.data, 0
        try:
            while done < len(view):
                part = view[done:]
                if hasattr(os, "preadv"):
                    count = os.preadv(self._descriptor, [part], offset + done)
                else:
                    with self._lock:
                        os.lseek(self._descriptor, offset + done, os.SEEK_SET)
                        data = os.read(self._descriptor, len(part))
                    count = len(data)
                    part[:count] = data
                if not count:
                    raise self.damaged("it has become shorter while it was being read")
                done += count
        except OSError as error:
            raise InputError(f"cannot read {self.file}: {reason(error)}") from None

    def _mapped(self) -> tuple[NDArray[np.uint8], mmap.mmap]:
        try:
            mapped = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot map {self.file} into memory: {reason(error)}") from None
        return np.frombuffer(mapped, np.uint8), mapped

    def damaged(self, what: str) -> InputError:
        """The error for a file that contradicts itself."""
        return damaged(self.file, what)

    def _read_meta(self) -> Meta:
        first = self._meta_at(0)
        second = self._meta_at(first.page_size)
        return max(first, second, key=lambda meta: meta.transaction)

    def _meta_at(self, offset: int) -> Meta:
        data = np.empty(max(0, min(META_BYTES, self.size - offset)), np.uint8)
        self.read_into(data, offset)
        return parse_meta(self.file, data.tobytes())

    def _pages(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Pages by their numbers: uint8 (n, page size)."""
        size = self.meta.page_size
        data = np.empty((len(numbers), size), np.uint8)
        for row, number in zip(data, numbers, strict=True):
            self.read_into(row, number * size)
        return data

    def _walk(self, page: int, depth: int) -> Iterator[tuple[list[int], list[int]]]:
        """Leaf pages from left to right, some at a time, each with its number of records."""
        if depth <= 1:
            yield self._sound_leaves([page])
            return
        self._visit(1)
        try:
            self._require_pages(page, 1)
            nodes = self._nodes(self._pages([page]), [page], BRANCH)
            children = (nodes.head & 0xFFFF_FFFF_FFFF).tolist()
        except InputError as error:
            self._report(error)
            return
        if depth == 2:
            yield self._sound_leaves(children)
            return
        for child in children:
            yield from self._walk(child, depth - 1)

    def _sound_leaves(self, pages: list[int]) -> tuple[list[int], list[int]]:
        """Those of these leaf pages that can be used; the others are reported."""
        self._visit(len(pages))
        try:
            self._require_pages(max(pages), 1)
            return pages, self._values(pages)[1].tolist()
        except InputError as error:
            if len(pages) == 1:
                self._report(error)
                return [], []
        good: list[int] = []
        counts: list[int] = []
        for page in pages:
            part = self._sound_leaves([page])
            good += part[0]
            counts += part[1]
        return good, counts

    def _visit(self, count: int) -> None:
        """Keep pages that link to each other in a circle from being followed for ever."""
        self._visited += count
        if self._visited > 2 * self.size // self.meta.page_size:
            raise self.damaged("more pages are linked than there are")

    def _report(self, error: InputError) -> None:
        if self._damage is None:
            raise error
        self._damage(str(error))

    def _require_pages(self, first: int, count: int) -> None:
        pages = self.size // self.meta.page_size
        if first + count > pages:
            wanted = (self.meta.last_page + 1) * self.meta.page_size
            if wanted > self.size:
                raise InputError(
                    f"{self.file} is truncated: {self.size} of at least {wanted} bytes are "
                    "there; make it again, or replace it by an intact copy"
                )
            raise self.damaged(f"page {first} lies outside the file")

    def _leaves_of(self, ranges: Sequence[tuple[int, int]]) -> tuple[list[int], Ints]:
        """Leaf pages that hold these records, and the records' positions among all their nodes."""
        starts, stops = np.array(ranges, np.int64).T
        if not (starts.min() >= 0 and (starts < stops).all() and stops.max() <= len(self)):
            raise IndexError(f"records {ranges} of {len(self)}")
        firsts = np.searchsorted(self._ends, starts, "right")
        lasts = np.searchsorted(self._ends, stops - 1, "right")
        begins = np.concatenate([[0], self._ends[:-1]])
        leaves: list[int] = []
        which, nodes = [], 0
        for i, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
            leaves += self._leaves[first : last + 1].tolist()
            shift = nodes - int(begins[first])
            which.append(np.arange(starts[i] + shift, stops[i] + shift))
            nodes += int(self._ends[last] - begins[first])
        return leaves, np.concatenate(which)

    def _nodes(self, data: NDArray[np.uint8], pages: Sequence[int], kind: int) -> _Nodes:
        """The nodes of branch or leaf pages, each within its page with all of its key."""
        size = data.shape[1]
        halves = data.view("<u2")
        numbers = data[:, :8].view("<u8")[:, 0]
        lower, upper = halves[:, 6].astype(np.int64), halves[:, 7].astype(np.int64)
        sound = (numbers == np.array(pages, np.uint64)) & (halves[:, 5] == kind)
        sound &= (lower >= HEADER + 2) & (lower <= upper) & (upper <= size)
        if not sound.all():
            wrong = pages[int(sound.argmin())]
            raise self.damaged(f"page {wrong} is not what it should be")
        count = (lower - HEADER) >> 1
        page = np.repeat(np.arange(len(pages)), count)
        first = np.cumsum(count) - count
        at = halves[page, np.arange(len(page)) - first[page] + HEADER // 2].astype(np.int64)
        if ((at < lower[page]) | (at > size - NODE) | (at & 1 == 1)).any():
            raise self.damaged("a page points outside itself")
        head = halves[page[:, None], (at >> 1)[:, None] + _FOUR].view("<u8")[:, 0]
        key_size = (head >> np.uint64(48)).astype(np.int64)
        if (at + key_size).max() > size - NODE:
            raise self.damaged("a page has a key that ends outside it")
        return _Nodes(page, at, head.astype(np.int64), key_size, count)

    def _values(self, pages: Sequence[int]) -> tuple[Places, Ints]:
        """All values of these leaf pages, and how many each page has."""
        data = self._pages(pages)
        page, at, head, key_size, count = self._nodes(data, pages, LEAF)
        page_size = self.meta.page_size
        size, start = head & 0xFFFF_FFFF, at + key_size + NODE
        if ((head >> 32) & (SUBDATA | DUPDATA)).any():
            raise InputError(
                f"{self.file} holds named databases or several values per key, which Caffe's do not"
            )
        big = ((head >> 32) & BIG).astype(np.bool_)
        if (start + np.where(big, 8, size)).max() > page_size:
            raise self.damaged("a page has a value that ends outside it")
        offset = start + np.array(pages, np.int64)[page] * page_size
        if big.any():
            first = data.reshape(-1)[(page * page_size + start)[big, None] + _EIGHT]
            numbers = first.view("<u8")[:, 0]
            self._require_pages(int(numbers.max()), 1)
            numbers = numbers.astype(np.int64)
            ends = numbers + (size[big] + (HEADER - 1 + page_size)) // page_size
            self._require_pages(int(ends.max()), 0)
            offset[big] = numbers * page_size + HEADER
        return Places(offset, size, big), count


_FOUR, _EIGHT = np.arange(4), np.arange(8)


class _Nodes(NamedTuple):
    """Nodes of some pages.

    page: the position of the node's page among the pages.
    at: the offset in the page.
    head: the first eight bytes; in a leaf the size of the value (32 bits), its kind (16) and the
        size of the key (16), in a branch the number of the child page (48) and the size of the key.
    per_page: how many nodes each page has.
    """

    page: Ints
    at: Ints
    head: Ints
    key_size: Ints
    per_page: Ints
