"""Finding and reading data files; every way they can be bad becomes one InputError line."""

from __future__ import annotations

import gzip
import os
import sys
import textwrap
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from cae_raw.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
REPLACE_IT = "replace it by an intact copy, or delete it to have it downloaded"


def cache_dir() -> Path:
    """Where downloads are kept: $CAE_RAW_CACHE, else $XDG_CACHE_HOME/cae-raw, else ~/.cache/cae-raw
    (on Windows %LOCALAPPDATA%/cae-raw/cache). The folder need not exist.
    """
    own = os.environ.get("CAE_RAW_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and os.path.isabs(xdg):  # the XDG specification says to ignore relative paths
        return Path(xdg) / "cae-raw"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "cae-raw" / "cache"
    try:
        return Path.home() / ".cache" / "cae-raw"
    except RuntimeError:
        raise InputError("no home folder for the cache: set CAE_RAW_CACHE to a folder") from None


def search_roots(
    data_dir: Path | None, subfolders: Iterable[str], cache_name: str
) -> tuple[Path, ...]:
    """Folders to look in, in order: data_dir, its named sub-folders, the cache.

    Raises InputError when data_dir is given but is not a folder that can be read.
    """
    roots: list[Path] = []
    if data_dir is not None:
        require_folder(data_dir, "--data-dir")
        roots += [data_dir, *(data_dir / name for name in subfolders)]
    return (*roots, cache_dir() / cache_name)


def require_folder(path: Path, what: str) -> None:
    """Raise InputError unless `path` is a folder whose entries can be listed."""
    try:
        os.scandir(path).close()
    except OSError as error:
        raise InputError(
            f"{what} {path}: {reason(error)}; name a folder that can be read"
        ) from None


def find(roots: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first path root/name that is there; a folder only when no file of these names is.

    Some unpackers make a folder of the file's name, so folders come last, to be reported.
    """
    names = tuple(names)
    paths = [root / name for root in roots for name in names if exists(root / name)]
    files = [path for path in paths if not path.is_dir()]
    return next(iter(files + paths), None)


def exists(path: Path) -> bool:
    """True when something has this name; a folder that may not be entered is an InputError."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"cannot look for {path}: {reason(error)}") from None
    return True


def open_file(path: Path) -> BinaryIO:
    """Open a regular file; a folder, pipe or device, or no permission, is an InputError."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a file: {REPLACE_IT}")
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise InputError(f"{path} is not a regular file: {REPLACE_IT}")
        return path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from None


def read_file(path: Path, limit: int) -> bytes:
    """At most limit + 1 bytes of a file, unpacked when the content is gzip, whatever its name.

    The one byte more lets the caller see that a file is too long, without reading all of it.
    Reading up to the end also checks the gzip checksum. Raises InputError.
    """
    with open_file(path) as file:
        try:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if not packed:
                return file.read(limit + 1)
            with gzip.open(file) as unpacked:
                return unpacked.read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"cannot unpack {path}: {reason(error)}; {REPLACE_IT}") from None


def looks_like(data: bytes) -> str:
    """A hint for error messages about what a wrong file really is, or an empty string."""
    head = data[:512].lstrip().lower()
    if not data:
        return " (it is empty)"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return " (it is a web page)"
    return ""


def reason(error: BaseException) -> str:
    """One line of bearable length saying what an exception means, without a path if it can be."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return textwrap.shorten(str(text), 160, placeholder=" ...")
