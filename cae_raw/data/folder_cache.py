"""A folder's images decoded once, into a database that trainings then read as they need it.

    CACHE_DIR/photos-64x64x3-9f86d081/    named by the folder, the images' shape, and a hash of both
        images.lmdb/    the images in the order of their hash positions, without the unreadable ones
        about.json      what they were made of: a digest of names, sizes and times of all the files
        lock            held while the two are made

A cache whose digest is not that of the folder, or that cannot be read, is made anew. `about.json`
is deleted before the database is touched and written when that is complete, so where it is there,
it describes the database beside it: readers need no lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.base import Dataset, Progress, pixels_fingerprint
from cae_raw.data.convert import ConvertOptions, Listed, convert
from cae_raw.data.folder import Found, left_out, split_kept
from cae_raw.data.lmdb_stream import LmdbSplit
from cae_raw.data.local import reason
from cae_raw.errors import InputError
from cae_raw.files import atomic_write, plain_name

FORMAT = 1  # of what a cache holds: another number, and caches are made anew
CHANNEL_ORDER = "rgb"
STEP = 1024  # images, or keys, that are looked at together
KEY_DIGITS = 8  # before the name in a key, see `convert`
HINT = "; free some space there, or keep the images in memory with --no-cache"


def load_cached(found: Found, cache_dir: Path, seed: int, progress: Progress | None) -> Dataset:
    """The folder's images from its cache, which is made where there is none that is up to date.

    Of several processes one makes it and the others wait.

    Raises:
        InputError: if too few images can be decoded, or the cache cannot be written.
    """

    def tell(what: str, done: int, total: int | None = None) -> None:
        if progress is not None:
            progress(what, done, total)

    cache = _Cache(cache_dir, found, seed, tell)
    opened = cache.open()
    if opened is None:
        with cache.locked():
            opened = cache.open()  # while this process waited, another one may have made it
            if opened is None:
                cache.make()
                opened = cache.open()
    if opened is None:
        raise InputError(f"{found.root} changes while it is being read: wait, then start again")
    whole, about = opened
    a, b = about["bounds"]
    notes = left_out([found.names[i] for i in about["left_out"]])
    return Dataset(
        "folder",
        whole.part(0, a),
        whole.part(a, b),
        whole.part(b, len(whole)),
        found.classes,
        (*notes, f"the decoded images are kept in {cache.path}"),
    )


class CachedSplit(LmdbSplit):
    """Images of a cache, with the names, labels and fingerprint that they have in memory."""

    def __init__(self, path: Path, labelled: bool, sha256: dict[tuple[int, int], str]) -> None:
        super().__init__(path, CHANNEL_ORDER)
        self._labelled, self._sha256 = labelled, sha256

    def sample(self) -> str:
        """A digest of some records."""
        return str(self._reader.fingerprint()["sha256_of_samples"])

    def names(self, start: int, stop: int) -> list[str]:
        return [os.fsdecode(key[KEY_DIGITS + 1 :]) for key in self.keys(start, stop)]

    def labels(self) -> NDArray[np.int64] | None:
        return super().labels() if self._labelled else None

    def fingerprint(self) -> dict[str, Any]:
        known = None if self._chosen is not None else self._sha256.get((self._first, len(self)))
        return pixels_fingerprint(
            (len(self), *self.image_shape), known or _digest_of_pixels(self, lambda *_: None)
        )


class _Cache:
    """The cache of one folder, for images of one shape."""

    def __init__(self, cache_dir: Path, found: Found, seed: int, tell: Progress) -> None:
        shape = f"{found.size}x{found.size}x{found.channels}"
        which = [FORMAT, str(found.root.resolve()), shape, seed]
        key = hashlib.sha256(json.dumps(which).encode()).hexdigest()[:8]
        self.path = cache_dir / f"{plain_name(found.root.resolve())[:100]}-{shape}-{key}"
        self.images, self.about = self.path / "images.lmdb", self.path / "about.json"
        self.found, self.tell = found, tell
        self.files = self._digest_of_files()

    def _digest_of_files(self) -> str:
        """Of what tells that a file has changed: its name, size and time of modification."""
        digest, total = hashlib.sha256(), len(self.found.names)
        for i, name in enumerate(self.found.names):
            try:
                status = os.stat(self.found.root / name)
                facts = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:  # gone since the folder was listed: left out, and noticed the next time
                facts = "gone"
            digest.update(os.fsencode(name) + f"\0{facts}\n".encode())
            self.tell("comparing files with those of the cache", i + 1, total)
        return digest.hexdigest()

    def open(self) -> tuple[CachedSplit, dict[str, Any]] | None:
        """The images, and what about.json says; None where they have to be made."""
        about = self._read_about()
        if about is None or about["files"] != self.files:
            return None
        sha256 = {(start, count): text for start, count, text in about["sha256"]}
        try:
            images = CachedSplit(self.images, self.found.labels is not None, sha256)
            sound = len(images) == about["images"] and images.sample() == about["sample"]
        except InputError:  # damaged, deleted, or just being made anew
            return None
        return (images, about) if sound and self._read_about() == about else None

    def _read_about(self) -> dict[str, Any] | None:
        try:
            about: dict[str, Any] = json.loads(self.about.read_bytes())
            facts = {name: value for name, value in about.items() if name != "checksum"}
            return about if about["checksum"] == _checksum(facts) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from making this cache; wait for one that is making it."""
        from filelock import FileLock, Timeout

        waited = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "lock")
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=1)
                except Timeout:
                    waited += 1
                    self.tell("seconds waited for another process's cache", waited, None)
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {reason(error)}{HINT}") from None
        try:
            yield
        finally:
            lock.release()

    def make(self) -> None:
        """Decode the images and write the cache; call it with the lock held."""
        found = self.found
        self._clear()
        labels = [0] * len(found.names) if found.labels is None else found.labels.tolist()
        listed = [Listed(*pair) for pair in zip(found.names, labels, strict=True)]
        options = ConvertOptions(
            found.size, crop=True, gray=found.channels == 1, channel_order=CHANNEL_ORDER
        )
        what = f"decoding the images of {found.root} for once"
        try:
            convert(
                found.root,
                listed,
                self.images,
                options,
                progress=lambda _, done, total: self.tell(what, done, total),
            )
        except InputError as error:
            hint = HINT if isinstance(error.__cause__, OSError) else ""
            raise InputError(f"{error}{hint}") from None
        whole = CachedSplit(self.images, False, {})

        def digest(start: int, stop: int) -> str:
            return _digest_of_pixels(whole.part(start, stop), self.tell)

        kept = np.zeros(len(found.names), np.bool_)
        for start in range(0, len(whole), STEP):
            keys = whole.keys(start, min(start + STEP, len(whole)))
            kept[[int(key[:KEY_DIGITS]) for key in keys]] = True
        try:
            a, b = split_kept(found, kept)
        except InputError:
            self._clear()
            raise
        facts = {
            "folder": str(found.root.resolve()),
            "files": self.files,
            "images": len(whole),
            "bounds": [a, b],
            "left_out": np.flatnonzero(~kept).tolist(),
            "sample": whole.sample(),
            "sha256": [
                [start, stop - start, digest(start, stop)]
                for start, stop in ((0, a), (a, b), (b, len(whole)))
            ],
        }
        about = {**facts, "checksum": _checksum(facts)}
        atomic_write(self.about, (json.dumps(about, indent=2) + "\n").encode())

    def _clear(self) -> None:
        """Remove what a former cache left; `about.json` goes first, which calls it complete."""
        try:
            self.about.unlink(missing_ok=True)
            if self.images.exists():
                shutil.rmtree(self.images)
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {reason(error)}{HINT}") from None


def _digest_of_pixels(images: LmdbSplit, tell: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    for batch in images.in_order(STEP):
        digest.update(batch.data)
        done += len(batch)
        tell("computing a checksum of the images", done, len(images))
    return digest.hexdigest()


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
