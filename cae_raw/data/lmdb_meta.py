"""The first pages of an LMDB file, and where the file is."""

from __future__ import annotations

import glob
import struct
from pathlib import Path
from typing import NamedTuple

from cae_raw.data.local import looks_like, reason
from cae_raw.errors import InputError
from cae_raw.files import TEMPORARY

MAGIC, VERSION = 0xBEEFC0DE, 1
META_PAGE = 8  # the flag of a meta page
DUPSORT = 4  # the flag of a database with several values per key
MAX_DEPTH = 32  # liblmdb's own bound
META_BYTES = 152  # of a meta page that are used


class Meta(NamedTuple):
    """What a meta page says about the database."""

    page_size: int
    depth: int
    entries: int
    root: int
    last_page: int
    transaction: int


def parse_meta(file: Path, raw: bytes) -> Meta:
    """A meta page from its first META_BYTES bytes, or as many as the file has.

    Raises:
        InputError: if it is none, or of a database that is not read here.
    """
    if len(raw) < META_BYTES:
        hint = "" if raw else looks_like(raw)
        raise InputError(f"{file} is not an LMDB, or the beginning of one only{hint}")
    (flags,) = struct.unpack_from("<H", raw, 10)
    magic, version = struct.unpack_from("<II", raw, 16)
    if magic != MAGIC or not flags & META_PAGE:
        raise InputError(f"{file} {_what_else(raw)}")
    if version != VERSION:
        raise InputError(
            f"{file} has LMDB data version {version}, but {VERSION} is read here: "
            "copy it with the tools of LMDB 0.9"
        )
    (page_size,) = struct.unpack_from("<I", raw, 40)
    flags, depth, _, _, _, entries, root = struct.unpack_from("<HHQQQQQ", raw, 92)
    last_page, transaction = struct.unpack_from("<QQ", raw, 136)
    if not 256 <= page_size <= 32768 or page_size & (page_size - 1) or depth > MAX_DEPTH:
        raise damaged(file, "its first pages contradict themselves")
    if flags & DUPSORT:
        raise InputError(f"{file} keeps several values per key, which Caffe's do not")
    return Meta(page_size, depth, entries, root, last_page, transaction)


def damaged(file: Path, what: str) -> InputError:
    """The error for a file that contradicts itself."""
    return InputError(f"{file} is damaged: {what}; make it again, or replace it by an intact copy")


def find_database(path: Path) -> Path:
    """The file of the database that `path` names."""
    if path.name.endswith(TEMPORARY) or path.parent.name.endswith(TEMPORARY):
        raise InputError(
            f"{path} is being written by cae-raw data convert, or was left by one that was "
            "killed: wait for it to end, then use the database under its final name"
        )
    try:
        file = path / "data.mdb" if path.is_dir() else path
        file.stat()
    except FileNotFoundError:
        if path.is_dir():
            raise InputError(
                f"{path} is a folder without data.mdb: name the folder of an LMDB"
            ) from None
        under_way = any(path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"))
        raise InputError(
            f"there is no {path}"
            + (": cae-raw data convert has not finished it" if under_way else "")
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from None
    if not file.is_file():
        raise InputError(f"{file} is not a regular file: name an LMDB")
    return file


def _what_else(raw: bytes) -> str:
    """What a file is that does not begin as an LMDB of this kind."""
    if raw[16:20] == struct.pack(">I", MAGIC):
        return "was written by a machine of the other byte order: write it anew on this one"
    if raw[12:16] == struct.pack("<I", MAGIC):
        return "was written by a 32-bit machine: write it anew on a 64-bit one"
    return f"is not an LMDB{looks_like(raw)}"
