"""Writing files so that whoever reads, also after a kill, finds the old or the new one, whole."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cae_raw.errors import InputError

TEMPORARY = ".cae-raw.tmp"  # how the names of temporary files end


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what is there only when all of it is on the disk.

    See `atomic_file`, whose promises and errors it has.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, and to read again, that becomes `path` when the block ends well.

    It is a temporary file in the same folder, which is then fsynced and renamed; then the folder
    is fsynced. The file gets the ordinary mode (0666 less the umask). A symbolic link at `path` is
    replaced, not followed. A kill can leave a temporary file behind: see `remove_leftovers`.

    Raises:
        InputError: if it cannot be written; the old file is as it was, the temporary one is gone.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY}"
    try:
        try:
            with open(temporary, "x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left in a folder; only while nobody else writes there."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def plain_name(path: str | Path) -> str:
    """The last part of a path, as part of the name of another folder."""
    return re.sub(r"[^\w.-]", "-", Path(path).name) or "root"


def sync_folder(folder: Path) -> None:
    """Make a rename outlast a power failure, where a folder can be opened and synced at all."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise
