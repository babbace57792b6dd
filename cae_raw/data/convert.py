"""Folders or lists of images into an LMDB of Datum records, as Caffe's convert_imageset makes them.

Keys are the number of the image in the list, eight digits, an underscore, and its path; a number
whose image could not be decoded is left out. Images are squashed to size x size, as Caffe does, or
cropped on request. The database is made under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.data import datum
from cae_raw.data.base import Progress
from cae_raw.data.folder import first_level_labels, list_images
from cae_raw.data.image_file import EXTENSIONS, load_square, quiet_pillow
from cae_raw.data.local import open_file, reason, require_folder
from cae_raw.data.order import epoch_order
from cae_raw.errors import InputError
from cae_raw.files import TEMPORARY, sync_folder

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_SIZE = 2048
MAX_IMAGES = 10**8  # more would not fit the eight digits
MAX_KEY = 511  # bytes; LMDB's bound
COMMIT_RECORDS = 1000
CHUNK = 16  # images that a thread decodes at a time
FIRST_MAP = 64 << 20  # bytes; the map is doubled whenever it is full
JPEG_QUALITY = 95  # OpenCV's default


@dataclass(frozen=True)
class Listed:
    """One image that is to be converted: its path below the source, and its label."""

    path: str
    label: int


@dataclass
class Converted:
    """What became of a conversion. `skipped` says per image why it is not in the database."""

    records: int = 0
    class_names: tuple[str, ...] = ()
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ConvertOptions:
    """How images become records.

    size: their side in pixels.
    crop: cut the largest centred square out of each, where the default squashes it whole.
    encoded: store JPEG files (quality 95) where the default stores pixels.
    gray: one channel.
    channel_order: "bgr", as Caffe's tools store colours, or "rgb"; without effect on JPEGs.
    threads: that decode; None for one per processor.
    """

    size: int = 64
    crop: bool = False
    encoded: bool = False
    gray: bool = False
    channel_order: str = "bgr"
    threads: int | None = None

    @property
    def channels(self) -> int:
        return 1 if self.gray else 3


def find_images(
    source: Path, list_file: Path | None = None, shuffle: bool = False, seed: int = 0
) -> tuple[list[Listed], tuple[str, ...]]:
    """The images to convert, in order, and the names of the classes where folders give them.

    Without a list: all images below `source` in the order of their paths; labels are the sorted
    first-level sub-folders if all images lie in one, else all 0. A list has lines "path label",
    paths relative to `source`, of which the last word is the label.

    Raises:
        InputError: if there are none, or a line of the list cannot be used.
    """
    require_folder(source, "the source")
    classes: tuple[str, ...] = ()
    if list_file is not None:
        images = _read_list(list_file)
    else:
        names = sorted(list_images(source))
        if not names:
            raise InputError(
                f"no images below {source}: looked for files {' '.join(sorted(EXTENSIONS))}"
            )
        classes, labels = first_level_labels(names)
        numbers = [0] * len(names) if labels is None else labels.tolist()
        images = [Listed(*pair) for pair in zip(names, numbers, strict=True)]
    if len(images) > MAX_IMAGES:
        raise InputError(f"{len(images)} images: at most {MAX_IMAGES} go into one database")
    if shuffle:
        images = [images[i] for i in epoch_order(len(images), seed, 0).tolist()]
    return images, classes


def convert(
    source: Path,
    images: list[Listed],
    out: Path,
    options: ConvertOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Make the database `out`, a folder, of these images below `source`.

    Images that cannot be decoded are left out and listed in the result.

    Raises:
        InputError: if `out` exists and may not be replaced, no image can be decoded, or it cannot
            be written; then nothing of it is left.
    """
    if not 1 <= options.size <= MAX_SIZE:
        raise InputError(f"--size must be at least 1 and at most {MAX_SIZE}, not {options.size}")
    if options.encoded and options.channel_order != "bgr":
        raise InputError("encoded images have no --channel-order of their own: omit it")
    datum.check_channel_order(options.channel_order)
    _require_replaceable(out, overwrite)
    try:
        with _temporary_folder(out) as (folder, lock):
            result = _Writer(folder, options, progress).write(source, images)
            lock.release()  # some systems rename no folder with an open file in it
            _publish(folder, out, overwrite)
    except BrokenPipeError:  # whoever listened to the progress has gone
        raise
    except OSError as error:
        raise InputError(f"cannot write {out}: {reason(error)}") from error
    return result


class _Writer:
    """Decodes in threads, writes in the order of the list, a thousand records at a time."""

    def __init__(self, folder: Path, options: ConvertOptions, progress: Progress | None) -> None:
        self.folder, self.options, self.progress = folder, options, progress

    def write(self, source: Path, images: list[Listed]) -> Converted:
        import lmdb

        result, done = Converted(), 0
        try:
            with contextlib.closing(
                lmdb.open(str(self.folder), map_size=FIRST_MAP, sync=False, lock=False)
            ) as database:
                with quiet_pillow():
                    for numbered in _batches(self._encoded(source, images), COMMIT_RECORDS):
                        good = [record for record, _ in numbered if record is not None]
                        result.skipped += [problem for record, problem in numbered if not record]
                        _commit(database, good)
                        result.records += len(good)
                        done += len(numbered)
                        if self.progress is not None:
                            self.progress("converting images", done, len(images))
                database.sync(True)
        except lmdb.Error as error:
            what = str(error).rpartition(": ")[2]
            if what == os.strerror(errno.EIO):  # what LMDB says of a write that was cut short
                what += " (is the disk full?)"
            raise OSError(0, what) from None
        if not result.records:
            why = f": {result.skipped[0]}" if result.skipped else ""
            raise InputError(f"none of {len(images)} images could be converted{why}")
        return result

    def _encoded(
        self, source: Path, images: list[Listed]
    ) -> Iterator[tuple[tuple[bytes, bytes] | None, str]]:
        """Per image its key and value, or why there are none, in order, decoded in advance."""

        def chunk(start: int) -> list[tuple[tuple[bytes, bytes] | None, str]]:
            return [
                self._record(source, i, images[i])
                for i in range(start, min(start + CHUNK, len(images)))
            ]

        threads = self.options.threads or os.cpu_count() or 1
        pool = ThreadPoolExecutor(threads)
        try:
            starts = iter(range(0, len(images), CHUNK))
            waiting: deque[Future[list[tuple[tuple[bytes, bytes] | None, str]]]] = deque(
                pool.submit(chunk, start) for start in islice(starts, 4 * threads)
            )
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(pool.submit(chunk, start) for start in islice(starts, 1))
        finally:
            pool.shutdown(cancel_futures=True)

    def _record(
        self, source: Path, number: int, image: Listed
    ) -> tuple[tuple[bytes, bytes] | None, str]:
        options = self.options
        try:
            pixels = load_square(
                source / image.path, options.channels, options.size, whole=not options.crop
            )
        except InputError as error:
            return None, str(error)
        if options.encoded:
            value = datum.serialize_encoded(_jpeg(pixels), pixels.shape, image.label)
        else:
            value = datum.serialize(pixels, image.label, options.channel_order)
        return (record_key(number, image.path), value), ""


def record_key(number: int, path: str) -> bytes:
    """Caffe's key. Where it is longer than LMDB allows, the beginning of the path is cut off."""
    front, name = b"%08d_" % number, os.fsencode(path)
    room = MAX_KEY - len(front)
    return front + (name if len(name) <= room else b"..." + name[3 - room :])


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    rows = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    buffer = BytesIO()
    image = Image.fromarray(np.ascontiguousarray(rows))
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _commit(database: Any, records: list[tuple[bytes, bytes]]) -> None:
    """Write records, whose keys ascend, in one transaction; a map that is full is doubled."""
    import lmdb

    while records:
        try:
            with database.begin(write=True) as transaction:
                for key, value in records:
                    transaction.put(key, value, append=True)
            return
        except lmdb.MapFullError:
            database.set_mapsize(2 * database.info()["map_size"])


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(items, size)):
        yield batch


def _read_list(path: Path) -> list[Listed]:
    with open_file(path) as file:
        try:
            text = os.fsdecode(file.read())
        except OSError as error:
            raise InputError(f"cannot read {path}: {reason(error)}") from None
    images = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"\s*(\S.*?)\s+([+-]?\d{1,10})\s*", line)
        if found is None or "\0" in line:
            raise InputError(
                f"{path}, line {number}: give a path and a whole number, as in cat/1.jpg 3"
            )
        label = int(found[2])
        if not -(2**31) <= label < 2**31:
            raise InputError(f"{path}, line {number}: the label {label} does not fit 32 bits")
        images.append(Listed(found[1], label))
    if not images:
        raise InputError(f"{path} lists no images: give lines like cat/1.jpg 3")
    return images


def _require_replaceable(out: Path, overwrite: bool) -> None:
    """Raise InputError unless `out` is free, or a database that may be replaced."""
    if out.name in ("", ".."):
        raise InputError(f"{out} is no name for a new database")
    require_folder(out.parent, "the folder for the database")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out} exists: name another one, or add --overwrite to replace it")
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out} is not the folder of an LMDB: it is not overwritten")
    others = {entry.name for entry in out.iterdir()} - {"data.mdb", "lock.mdb"}
    if others:
        raise InputError(f"{out} holds {min(others)}, which no LMDB does: it is not overwritten")


@contextlib.contextmanager
def _temporary_folder(out: Path) -> Iterator[tuple[Path, BaseFileLock]]:
    """A folder beside `out` for the database, gone afterwards unless it has been renamed.

    A kill leaves it behind. The next conversion of this name removes it: a live one holds a lock.
    """
    from filelock import FileLock, Timeout

    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*{TEMPORARY}"):
        with contextlib.suppress(Timeout, OSError), FileLock(leftover / "lock", timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = out.parent / f".{out.name}.{secrets.token_hex(8)}{TEMPORARY}"
    folder.mkdir()
    lock = FileLock(folder / "lock", timeout=0)
    try:
        with lock:
            yield folder, lock
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, out: Path, overwrite: bool) -> None:
    """Make the finished database appear under its name, whole, also after a power failure."""
    for name in ("lock", "lock.mdb"):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
    with open(folder / "data.mdb", "r+b") as file:
        os.fsync(file.fileno())
    sync_folder(folder)
    if overwrite and os.path.lexists(out):  # no folder with files is replaced in one step
        former = folder.with_name(f".{out.name}.{secrets.token_hex(8)}{TEMPORARY}")
        os.rename(out, former)
        try:
            os.rename(folder, out)
        except OSError:
            os.rename(former, out)
            raise
        shutil.rmtree(former, ignore_errors=True)
    else:
        os.rename(folder, out)
    sync_folder(out.parent)
