"""Atomic writing: the whole new file or the whole old one, with an ordinary mode."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cae_raw.errors import InputError
from cae_raw.files import atomic_write, remove_leftovers


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for data in (b"first", b"", b"third" * 1000):
        atomic_write(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.bin"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=r"cannot write .*a\.bin: No space left on device$"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["missing/a", "file/a", "folder", "n" * 300])
def test_impossible_paths_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write") as caught:
        atomic_write(tmp_path / name, b"x")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"keep")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_bytes() == b"keep"
    assert not (tmp_path / "link").is_symlink()


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path, size = tmp_path / "a.bin", 4_000_000
    script = (
        "import sys; from pathlib import Path; from cae_raw.files import atomic_write\n"
        f"while True:\n  for c in b'01': atomic_write(Path(sys.argv[1]), bytes([c]) * {size})"
    )
    for delay in (0.0, 0.011, 0.023):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
        try:
            until = time.monotonic() + 30
            while not path.exists() and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(delay)
        finally:
            writer.kill()
            writer.wait()
        data = path.read_bytes()
        assert data in (b"0" * size, b"1" * size)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a.bin"]


def test_leftovers_are_told_from_other_files(tmp_path: Path) -> None:
    names = ["a.cae-raw.tmp", ".hidden", ".0123.cae-raw.tmp", "last.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(set(names) - {".0123.cae-raw.tmp"})
