"""Downloads that survive a broken line: several sources, resume, checksum; through pooch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cae_raw.data.base import Progress
from cae_raw.data.local import find, reason
from cae_raw.errors import InputError

if TYPE_CHECKING:
    import ssl

TIMEOUT = 10.0  # seconds to connect, and between two pieces
ROUNDS = 5  # times through all sources, as long as each round brings new bytes
_PIECE = 1 << 18


@dataclass(frozen=True)
class Remote:
    """A file to download: its name, exact size in bytes, checksum as `algorithm:hex`, and URLs."""

    name: str
    size: int
    checksum: str
    urls: tuple[str, ...]


class _BrokenTransferError(Exception):
    """One source failed; the message says how. Another source may do."""


def locate(
    roots: tuple[Path, ...], names: Iterable[str], remote: Remote, progress: Progress | None
) -> Path:
    """A local file root/name, else the file downloaded into the last root, the cache.

    A file that was downloaded before is checked again, and replaced when it is bad.
    Raises InputError when there is no way to get the file.
    """
    path = find(roots, names)
    if path is not None and path != roots[-1] / remote.name:
        return path
    try:
        return fetch(remote, roots[-1], progress)
    except InputError as error:
        looked = ", ".join(str(root) for root in roots)
        raise InputError(f"{error}. Looked in: {looked}") from None


def fetch(remote: Remote, folder: Path, progress: Progress | None = None) -> Path:
    """folder/name with the right checksum, downloading it where it is missing or bad.

    The sources are tried in order. Bytes received before a line broke stay in `name.part` and
    the next attempt, also that of a later process, asks for the rest only. The file gets its
    name once its checksum is right; a lock keeps two processes from writing at once.
    Raises InputError with the reason per source.
    """
    from filelock import FileLock

    path = folder / remote.name
    try:
        if path.is_file() and _checksum_is_right(path, remote.checksum):
            return path  # without the lock: a shared cache may be read-only
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{remote.name}.lock"):
            return _fetch_locked(remote, folder, progress)
    except OSError as error:
        raise InputError(
            f"cannot store {remote.name} in {folder}: {reason(error)}; "
            "make it writable, or set CAE_RAW_CACHE to another folder"
        ) from None


def _fetch_locked(remote: Remote, folder: Path, progress: Progress | None) -> Path:
    part = folder / f"{remote.name}.part"
    failures: dict[str, str] = {}
    for _ in range(ROUNDS):
        had = _size(part)
        for url in remote.urls:
            # A failed checksum after a resume may be the old part's fault: once more, afresh.
            for resumed in (_size(part) > 0, False):
                try:
                    return _retrieve(remote, url, folder, part, progress)
                except _BrokenTransferError as error:
                    failures[url] = str(error)
                    if not resumed or part.exists():
                        break
        if _size(part) <= had:
            break
    tried = "; ".join(f"{url} ({why})" for url, why in failures.items())
    raise InputError(
        f"cannot download {remote.name}: {tried}. Put the file in a folder and name it with "
        "--data-dir, or use --dataset shapes, which needs no files"
    )


def _retrieve(
    remote: Remote, url: str, folder: Path, part: Path, progress: Progress | None
) -> Path:
    import pooch  # type: ignore[import-untyped,unused-ignore]

    pooch.get_logger().setLevel(logging.WARNING)

    def downloader(url: str, output_file: str, _: object) -> None:
        _transfer(remote, url, part, progress)
        os.replace(part, output_file)

    try:
        path = pooch.retrieve(
            url,
            known_hash=remote.checksum,
            fname=remote.name,
            path=folder,
            downloader=downloader,
        )
    except ValueError:  # pooch has removed the file
        raise _BrokenTransferError("wrong checksum") from None
    return Path(path)


def _transfer(remote: Remote, url: str, part: Path, progress: Progress | None) -> None:
    """Complete `part` from one URL; on failure keep what came, and raise _BrokenTransferError."""
    import urllib.request
    from http.client import HTTPException

    done = _size(part)
    if done > remote.size:
        part.unlink()
        done = 0
    if done == remote.size:
        return
    headers = {"User-Agent": "cae-raw", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT, context=_tls()) as response:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                done = 0  # a server without ranges sends the whole file
            if response.headers.get_content_type() == "text/html":
                raise _BrokenTransferError("a web page came instead of the file")
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and int(length) != remote.size - done:
                raise _BrokenTransferError(
                    f"{done + int(length)} bytes offered instead of {remote.size}"
                )
            with part.open("r+b" if done else "wb") as file:
                file.seek(done)
                while piece := response.read(min(_PIECE, remote.size + 1 - done)):
                    file.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(f"downloading {remote.name}", min(done, remote.size), remote.size)
    except (OSError, HTTPException, ValueError) as error:
        # Not being able to write is no fault of the source, so it is not taken for one.
        if str(getattr(error, "filename", "")) == str(part):
            raise
        raise _BrokenTransferError(_why(error)) from None
    if done > remote.size:
        part.unlink()
        raise _BrokenTransferError("longer than the published file")
    if done < remote.size:
        raise _BrokenTransferError(f"the line broke after {done} of {remote.size} bytes")


def _checksum_is_right(path: Path, checksum: str) -> bool:
    import pooch  # type: ignore[import-untyped,unused-ignore]

    algorithm, _, digest = checksum.partition(":")
    return bool(pooch.file_hash(str(path), alg=algorithm) == digest)


def _tls() -> ssl.SSLContext:
    """The system's certificates, else (Python from python.org on a Mac has none) certifi's."""
    import ssl

    context = ssl.create_default_context()
    if not context.get_ca_certs():
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _why(error: Exception) -> str:
    import urllib.error

    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    inner = getattr(error, "reason", None)
    return reason(inner if isinstance(inner, BaseException) else error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
