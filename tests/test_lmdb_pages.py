"""LMDB files by their pages: the same records as liblmdb sees, and every damage is one line."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from cli_runner import ROOT
from lmdb_cases import key, pixels, record, write, write_images

from cae_raw.data.lmdb_datum import DatumReader
from cae_raw.data.lmdb_pages import LmdbFile
from cae_raw.errors import InputError


def values(file: LmdbFile) -> list[bytes]:
    places = file.places([(0, len(file))])
    return [file.value(*places.one(i)) for i in range(len(file))]


# Three levels of pages need many long keys; values of all kinds of sizes, empty ones too.
@pytest.mark.parametrize("n", [1, 2, 100, 3000])
def test_same_records_as_liblmdb(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(n)
    items = {
        rng.bytes(int(rng.integers(1, 512))): rng.bytes(int(rng.choice([0, 1, 9, 600, 2039, 9000])))
        for _ in range(n)
    }
    path = write(tmp_path / "db", items.items())
    file = LmdbFile(path)
    assert file.keys(0, len(file)) == sorted(items)
    assert values(file) == [items[k] for k in sorted(items)]
    if n == 3000:
        assert file.meta.depth >= 3
    some = [(int(i), int(i) + 1) for i in rng.integers(0, len(file), 20)]
    places = file.places(some)
    assert [file.value(*places.one(j)) for j in range(20)] == [values(file)[i] for i, _ in some]


@pytest.mark.parametrize("ranges", [[(0, 0)], [(-1, 2)], [(0, 4)], [(0, 2), (2, 1)]], ids=str)
def test_records_that_are_not_there(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    file = LmdbFile(write_images(tmp_path / "db", pixels(3)))
    with pytest.raises(IndexError):
        file.places(ranges)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    LmdbFile(write_images(tmp_path / "db", pixels(500)), progress=lambda *args: seen.append(args))
    assert seen[-1] == (500, 500)


def test_files_are_closed(tmp_path: Path) -> None:
    path = write_images(tmp_path / "db", pixels(500))
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for _ in range(5):
        file = LmdbFile(path)
        file.places([(0, 3)])
        del file
    assert not before or len(set(os.listdir("/proc/self/fd")) - before) <= 1


# --- what is no database


def test_refused_paths(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    cases = {
        tmp_path / "none": "there is no ",
        folder: "is a folder without data.mdb",
        tmp_path / "text/data.mdb": "is not an LMDB, or the beginning of one only",
        tmp_path / "empty": r"beginning of one only \(it is empty\)",
        tmp_path / "page": r"is not an LMDB \(it is a web page\)",
        tmp_path / f".x.{'0' * 16}.cae-raw.tmp": "is being written by cae-raw data convert",
    }
    (tmp_path / "text").mkdir()
    (tmp_path / "text/data.mdb").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "page").write_text("<html>" + " " * 9000)
    for path, message in cases.items():
        with pytest.raises(InputError, match=message):
            LmdbFile(path)
    (tmp_path / f".none.{'0' * 16}.cae-raw.tmp").mkdir()
    with pytest.raises(InputError, match="has not finished it"):
        LmdbFile(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="is not a regular file"):
            LmdbFile(tmp_path / "pipe")


def test_an_empty_database(tmp_path: Path) -> None:
    path = write(tmp_path / "db", [])
    assert len(LmdbFile(path)) == 0
    with pytest.raises(InputError, match="is an LMDB without records"):
        DatumReader(path)


def test_other_machines_and_versions(tmp_path: Path) -> None:
    path = write_images(tmp_path / "db", pixels(3)) / "data.mdb"
    good = path.read_bytes()
    path.write_bytes(good[:20] + struct.pack("<I", 999) + good[24:])
    with pytest.raises(InputError, match="has LMDB data version 999"):
        LmdbFile(path)
    path.write_bytes(good[:16] + good[19:15:-1] + good[20:])
    with pytest.raises(InputError, match="the other byte order"):
        LmdbFile(path)
    path.write_bytes(good[:12] + good[16:])
    with pytest.raises(InputError, match="32-bit machine"):
        LmdbFile(path)


def test_databases_of_another_kind(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "named"), max_dbs=2) as env:
        named = env.open_db(b"inside")
        with env.begin(write=True, db=named) as transaction:
            transaction.put(b"a", b"b")
    with pytest.raises(InputError, match="holds named databases"):
        LmdbFile(tmp_path / "named")
    path = write_images(tmp_path / "several", pixels(3)) / "data.mdb"
    data = bytearray(path.read_bytes())
    data[92] |= 4  # the flag of the main database, in both meta pages
    data[4096 + 92] |= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match="several values per key"):
        LmdbFile(tmp_path / "several")


# --- damage


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    path = write_images(tmp_path / "db", pixels(300, (3, 40, 40))) / "data.mdb"
    size = path.stat().st_size
    os.truncate(path, int(size * share))
    with pytest.raises(InputError, match=r"is truncated: \d+ of at least \d+ bytes") as caught:
        DatumReader(path)
    assert str(size) in str(caught.value)


def test_every_length_of_a_small_file(tmp_path: Path) -> None:
    path = write_images(tmp_path / "db", pixels(3)) / "data.mdb"
    good = path.read_bytes()
    for length in range(0, len(good), 37):
        path.write_bytes(good[:length])
        with pytest.raises(InputError):
            DatumReader(path)


def test_a_lost_overflow_page_is_noticed(tmp_path: Path) -> None:
    images = pixels(50, (3, 40, 40))
    path = write_images(tmp_path / "db", images) / "data.mdb"
    file = LmdbFile(path)
    offset, _, big = file.places([(20, 21)]).one(0)
    assert big
    with path.open("r+b") as data:
        data.seek(offset - 16)
        data.write(bytes(4096))
    reader, out = DatumReader(path), np.zeros_like(images)
    reader.read(0, 20, out[:20])
    assert np.array_equal(out[:20], images[:20])
    with pytest.raises(InputError, match=r"is damaged: page \d+ is not what it should be"):
        reader.read(0, 50, out)


DAMAGE = """
import sys
from pathlib import Path
import numpy as np
from cae_raw.data.lmdb_datum import DatumReader
from cae_raw.errors import InputError

path, seed, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
good, rng = path.read_bytes(), np.random.default_rng(seed)
pages = len(good) // 4096
kinds = np.frombuffer(good, "<u2").reshape(pages, -1)[:, 5]
trees = np.flatnonzero(kinds != 0)  # values' later pages have no header; damage there is harmless
counts = {"fine": 0, "refused": 0}
for _ in range(times):
    data = bytearray(good)
    for _ in range(rng.integers(1, 4)):
        page = int(rng.choice(trees))
        at = page * 4096 + int(rng.choice([rng.integers(0, 64), rng.integers(0, 4096)]))
        data[at] = int(rng.choice([0, 1, 255, data[at] ^ 1 << int(rng.integers(8))]))
    path.write_bytes(data)
    try:
        reader = DatumReader(path)
        out = np.zeros((len(reader), *reader.image_shape), np.uint8)
        reader.read(0, len(reader), out)
        reader.names(0, len(reader))
        counts["fine"] += 1
    except InputError as error:
        assert "\\n" not in str(error)
        counts["refused"] += 1
    path.write_bytes(good)
print(counts["fine"], counts["refused"])
"""


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 40, 40)], ids=str)
def test_random_damage_never_ends_the_process(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """In a process of its own, so that a crash is a failure and not the end of the tests."""
    path = write_images(tmp_path / "db", pixels(200, shape)) / "data.mdb"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", DAMAGE, str(path), "0", "300"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    fine, refused = map(int, result.stdout.split())
    assert refused > 30 and fine > 0  # most damage in values and free space cannot be seen


def test_pages_that_link_in_a_circle(tmp_path: Path) -> None:
    path = write_images(tmp_path / "db", pixels(2000, (1, 2, 2))) / "data.mdb"
    data = bytearray(path.read_bytes())
    file = LmdbFile(path)
    root, size = file.meta.root, file.meta.page_size
    assert file.meta.depth == 2
    for meta in (0, size):  # a depth at which every branch leads to branches
        data[meta + 94 : meta + 96] = struct.pack("<H", 32)
    lower = struct.unpack_from("<H", data, root * size + 12)[0]
    for at in struct.unpack_from(f"<{(lower - 16) // 2}H", data, root * size + 16):
        node = root * size + at
        data[node : node + 6] = struct.pack("<IH", root, 0)
    path.write_bytes(data)
    with pytest.raises(InputError, match="is not what it should be"):
        LmdbFile(path)
    with pytest.raises(InputError, match="more pages are linked than there are"):
        LmdbFile(path, damage=lambda line: None)


# --- other processes


def change(path: Path) -> None:
    with (
        lmdb.open(str(path), map_size=1 << 28) as env,
        env.begin(write=True) as transaction,
    ):
        transaction.put(b"9", b"new")


def shorten(path: Path) -> None:
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size - 4096)


@pytest.mark.parametrize("act", [change, shorten])
def test_changes_while_reading_are_noticed(tmp_path: Path, act: Callable[[Path], None]) -> None:
    path = write_images(tmp_path / "db", pixels(30))
    file = LmdbFile(path)
    file.check_unchanged()
    act(path)
    with pytest.raises(InputError, match="was changed by another process while it was being read"):
        file.check_unchanged()


def test_an_open_transaction_elsewhere_does_no_harm(tmp_path: Path) -> None:
    images = pixels(30)
    path = write_images(tmp_path / "db", images)
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as transaction:
        for i in range(30):
            transaction.put(key(i), record(images[0]))
        reader, out = DatumReader(path), np.zeros_like(images)
        reader.read(0, 30, out)
        reader.file.check_unchanged()
        assert np.array_equal(out, images)
        transaction.abort()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork(tmp_path: Path) -> None:
    """In a process of its own, because the tests' one may have threads."""
    images = pixels(300, (3, 40, 40))
    path = write_images(tmp_path / "db", images)
    code = """
import os, sys
from pathlib import Path
import numpy as np
from cae_raw.data.lmdb_datum import DatumReader
reader = DatumReader(Path(sys.argv[1]))
def total():
    out = np.zeros((300, 3, 40, 40), np.uint8)
    reader.read(0, 300, out)
    return int(out.sum())
before = total()
child = os.fork()
if not child:
    os._exit(0 if total() == before else 1)
assert os.waitpid(child, 0)[1] == 0
print(total() - before, before)
"""
    command = [sys.executable, "-c", code, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", str(int(images.sum(dtype=np.int64)))]
