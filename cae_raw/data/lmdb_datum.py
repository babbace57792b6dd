"""Images out of an LMDB of Datum records, many at a time, straight into the caller's array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import gcd, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from cae_raw.data import datum
from cae_raw.data.image_file import silence_pillow
from cae_raw.data.lmdb_pages import HEADER, Ints, LmdbFile, Places
from cae_raw.errors import InputError

CHUNK_BYTES = 1 << 20  # unpacked at once, so that they are still in a cache when they are copied
SMALLEST_GRAIN = 256  # bytes that are worth copying by themselves
MAX_TAIL = 8  # bytes that may follow the pixels in a usual record
MAX_SHOWN = 80  # bytes of a key in a message
SAMPLED = 16  # records in a fingerprint


class DatumReader:
    """The records of an LMDB as uint8 images (C, H, W), RGB or gray, numbered in key order.

    All have the shape of the first record, or (C, *resize). May be used from several threads.

    Args:
        path: the database: its folder, or its file.
        channel_order: how colours are stored: "bgr", as Caffe's tools do, or "rgb". Encoded
            records know their own.
        resize: (height, width); records of another size are resized (Lanczos) to it, without
            keeping their aspect ratio. None: they are refused.
        progress: hears how many records have been found, and their total.

    Raises:
        InputError: if this is no LMDB, a damaged or an empty one, or its first record is bad.
    """

    def __init__(
        self,
        path: Path,
        channel_order: str = "bgr",
        resize: tuple[int, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        datum.check_channel_order(channel_order)
        if resize is not None and min(resize) < 1:
            raise InputError(f"images cannot be resized to {resize[0]}x{resize[1]}")
        self.path, self.channel_order, self.resize = path, channel_order, resize
        self.file, self._quiet = LmdbFile(path, progress=progress), False
        if not len(self.file):
            raise InputError(f"{path} is an LMDB without records: nothing can be read from it")
        self.image_shape: datum.Shape = (0, 0, 0)  # anything, for the first record
        (value,) = self._values(0, 1)
        c, h, w = self._pixels(0, value).shape
        self.image_shape = (c, *(resize or (h, w)))
        self._prefix = datum.plain_prefix(self.image_shape)  # eight bytes or more
        self._first, self._last = (
            np.uint64(int.from_bytes(part, "little"))
            for part in (self._prefix[:8], self._prefix[-8:])
        )
        self._grain = gcd(self.file.meta.page_size, prod(self.image_shape[1:]))

    def __len__(self) -> int:
        return len(self.file)

    def names(self, start: int, stop: int) -> list[str]:
        """The keys of records start to stop, as text."""
        return [key.decode("utf-8", "backslashreplace") for key in self.file.keys(start, stop)]

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Records start to stop into `out`, uint8 (stop - start, C, H, W), C-contiguous.

        Raises:
            InputError: naming the key, if a record cannot be used.
        """
        self.gather(np.arange(start, stop), self.file.places([(start, stop)]), out)

    def gather(self, numbers: Ints, places: Places, out: NDArray[np.uint8]) -> None:
        """Records of these numbers, whose values lie at these places, into the rows of `out`.

        All of the usual size are copied as if they had the usual layout, the pixels of
        `image_shape` behind `plain_prefix`. Those that turn out to be different are then parsed.
        """
        if not out.flags.c_contiguous:
            raise ValueError("images are read into C-contiguous arrays")
        shortest = len(self._prefix) + prod(self.image_shape)
        usual = (places.size >= shortest) & (places.size <= shortest + MAX_TAIL)
        if usual.all():
            usual = self._copy(places, out)
        elif usual.any():
            some = np.empty((int(usual.sum()), *self.image_shape), np.uint8)
            plain = self._copy(places.at(usual), some)
            out[usual] = some
            usual[usual] = plain
        if not usual.all():
            for i in np.flatnonzero(~usual).tolist():
                value = self.file.value(*places.one(i))
                out[i] = self._pixels(int(numbers[i]), value)
        self.file.taken(int(places.size.sum()))

    def labels(self, start: int, stop: int) -> NDArray[np.int64]:
        """The labels of records start to stop, int64 (stop - start,)."""
        labels = np.empty(stop - start, np.int64)
        for i, value in enumerate(self._values(start, stop)):
            try:
                labels[i] = datum.parse(value).label
            except InputError as error:
                raise self._error(start + i, str(error)) from None
        return labels

    def fingerprint(self) -> dict[str, Any]:
        """What tells this data from other data, from a few records: for a check on resuming."""
        digest = hashlib.sha256()
        for index in np.linspace(0, len(self) - 1, min(SAMPLED, len(self))).astype(int).tolist():
            for part in (self.file.keys(index, index + 1)[0], *self._values(index, index + 1)):
                digest.update(len(part).to_bytes(8, "little") + part)
        return {
            "records": len(self),
            "image_shape": list(self.image_shape),
            "channel_order": self.channel_order,
            "sha256_of_samples": digest.hexdigest(),
        }

    def _copy(self, places: Places, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Copy the pixels of records of the usual size; say of which ones they were the pixels."""
        head = len(self._prefix)
        tail = head + prod(self.image_shape)
        page, first, last, end = self._words(places.offset, (-HEADER, 0, head - 8, tail))
        self._check_pages(places, page)
        if places.big.all() and self._grain >= SMALLEST_GRAIN:
            self._copy_grains(places.offset + head, out)
        else:
            self._copy_stretches(places.offset + head, out)
        plain = (first == self._first) & (last == self._last)
        return plain & datum.plain_tails(end, places.size - tail)

    def _copy_grains(self, begins: Ints, out: NDArray[np.uint8]) -> None:
        """Pixels in overflow pages, all at once.

        They begin at the same place of a page in every record, so the file, less its first bytes,
        is an array of grains, pieces that divide both a page and an image's channel, and the
        channels of a record are consecutive grains. One `take` copies them into their final order.
        """
        c, h, w = self.image_shape
        shift, grain = int(begins[0]) % self._grain, self._grain
        data = self.file.bytes[shift:]
        grains = data[: len(data) // grain * grain].reshape(-1, grain)
        order = np.arange(c * h * w // grain).reshape(c, -1)
        if self.channel_order == "bgr":
            order = order[::-1]
        which = ((begins // grain)[:, None] + order.ravel()).ravel()
        np.take(grains, which, axis=0, out=out.reshape(-1, grain), mode="clip")

    def _copy_stretches(self, begins: Ints, out: NDArray[np.uint8]) -> None:
        """Pixels that begin anywhere."""
        size = prod(self.image_shape)
        every = (self.file.size - size + 1, size)
        stretches = as_strided(self.file.bytes, every, (1, 1), writeable=False)
        step = max(1, CHUNK_BYTES // size)
        for i in range(0, len(out), step):
            part = slice(i, i + step)
            stored = stretches[begins[part]].reshape(-1, *self.image_shape)
            out[part] = datum.reordered(stored, self.channel_order)

    def _words(self, offsets: Ints, shifts: tuple[int, ...]) -> NDArray[np.uint64]:
        """Eight bytes from each offset plus each shift: (shifts, offsets).

        What lies behind the end of the file is undefined.
        """
        at = np.add.outer(shifts, offsets)[:, :, None] + _EIGHT
        words: NDArray[np.uint64] = np.take(self.file.bytes, at, mode="clip").view("<u8")[:, :, 0]
        return words

    def _check_pages(self, places: Places, numbers: NDArray[np.uint64]) -> None:
        """The header of an overflow page repeats its number, which tells pages that got lost."""
        expected = places.offset // self.file.meta.page_size
        wrong = places.big & (numbers != expected.view(np.uint64))
        if wrong.any():
            raise self.file.damaged(f"page {expected[wrong][0]} is not what it should be")

    def _pixels(self, index: int, value: bytes) -> NDArray[np.uint8]:
        """The slow way, for any record: parse, decode, compare, resize."""
        if not self._quiet:
            silence_pillow()
            self._quiet = True
        try:
            pixels = decode(value, self.channel_order)
        except InputError as error:
            raise self._error(index, str(error)) from None
        shape = self.image_shape
        if pixels.shape == shape or shape == (0, 0, 0):
            return pixels
        c, h, w = pixels.shape
        if self.resize is not None and c == shape[0]:
            return resized(pixels, self.resize)
        what = f"is {c}x{h}x{w}, but the first one is {shape[0]}x{shape[1]}x{shape[2]}"
        if c == shape[0]:
            what += (
                ": resize them all (--size, for train with --resize), or convert the images again"
            )
        raise self._error(index, what)

    def _error(self, index: int, what: str) -> InputError:
        return InputError(
            f"{self.path}: record {shown(self.file.keys(index, index + 1)[0])} {what}"
        )

    def _values(self, start: int, stop: int) -> list[bytes]:
        """Records start to stop as they are stored."""
        places = self.file.places([(start, stop)])
        self.file.taken(int(places.size.sum()))
        return [self.file.value(*places.one(i)) for i in range(stop - start)]


def decode(value: bytes, channel_order: str = "bgr") -> NDArray[np.uint8]:
    """One record's value as uint8 (C, H, W), RGB or gray.

    Raises:
        InputError: if it is no Datum or holds no image; the line begins with a verb.
    """
    return datum.to_pixels(datum.parse(value), channel_order)


def resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 (C, H, W) resized (Lanczos) to (height, width), each side by itself."""
    from PIL import Image

    h, w = size
    planes = [
        np.asarray(Image.fromarray(plane).resize((w, h), Image.Resampling.LANCZOS))
        for plane in pixels
    ]
    return np.stack(planes)


def shown(key: bytes) -> str:
    """A key for a message, of bearable length."""
    text = key[:MAX_SHOWN].decode("utf-8", "backslashreplace")
    return repr(text) + "..." * (len(key) > MAX_SHOWN)


_EIGHT = np.arange(8)
