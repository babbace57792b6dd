"""Image files for a model, decoded ahead in threads, and put together to batches of one shape."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.folder import first_level_labels, list_images
from cae_raw.data.image_file import decode_image, silence_pillow
from cae_raw.data.local import open_file
from cae_raw.errors import InputError
from cae_raw.fit import GRAY_REPEATED, TURNED_TO_GRAY, Pixels, with_size

AHEAD = 2  # images per thread that are decoded before they are asked for
BATCH_BYTES = 16 * 2**20  # of uint8 images in one batch


class Source(NamedTuple):
    """An image file to read. `label` is None where its folder gives none."""

    path: Path
    label: int | None = None


class Batch(NamedTuple):
    """Images of one shape: uint8 (n, C, H, W), and where each is from."""

    images: NDArray[np.uint8]
    sources: list[Source]


def find_sources(paths: Iterable[Path]) -> tuple[list[Source], tuple[str, ...]]:
    """The image files that are meant, each once, and the names of the classes they belong to.

    A folder stands for all image files below it, in order of name. When a single folder is given
    and all of them lie in its sub-folders, those of the first level are the classes, numbered in
    order of name; otherwise there are no labels.

    Raises:
        InputError: for a folder without images.
    """
    paths = list(dict.fromkeys(paths))
    found: list[Source] = []
    classes: tuple[str, ...] = ()
    for path in paths:
        if not path.is_dir():
            found.append(Source(path))
            continue
        names = sorted(list_images(path))
        if not names:
            raise InputError(f"no images below the folder {path}: name image files")
        labels = None
        if len(paths) == 1:
            classes, labels = first_level_labels(names)
        found += [
            Source(path / name, None if labels is None else int(labels[i]))
            for i, name in enumerate(names)
        ]
    return list({source.path: source for source in found}.values()), classes


def batches(
    sources: Iterable[Source],
    channels: int,
    size: tuple[int, int] | None,
    largest: int,
    on_note: Callable[[Source, str], None],
    on_error: Callable[[Source, str], None],
) -> Iterator[Batch]:
    """Read the files in their order; consecutive images of one shape come together.

    Args:
        channels: what the images are turned to, 1 or 3.
        size: (height, width) that they are resized to; None leaves them at their own.
        largest: how many images a batch may hold.
        on_note: hears what was done to an image to make it fit, see `cae_raw.fit`.
        on_error: hears of a file that cannot be used, in one line; it is left out.
    """
    images: list[Pixels] = []
    kept: list[Source] = []
    for source, loaded in _loaded(sources, channels, size):
        if isinstance(loaded, InputError):
            on_error(source, str(loaded))
            continue
        image, notes = loaded
        for note in notes:
            on_note(source, note)
        full = len(images) == largest or sum(i.nbytes for i in images) >= BATCH_BYTES
        if images and (full or images[0].shape != image.shape):
            yield Batch(np.stack(images), kept)
            images, kept = [], []
        images.append(image)
        kept.append(source)
    if images:
        yield Batch(np.stack(images), kept)


Loaded = tuple[Pixels, tuple[str, ...]]


def _loaded(
    sources: Iterable[Source], channels: int, size: tuple[int, int] | None
) -> Iterator[tuple[Source, Loaded | InputError]]:
    silence_pillow()
    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Source, Future[Loaded | InputError]]] = deque()
    try:
        for source in sources:
            waiting.append((source, pool.submit(_load, source.path, channels, size)))
            if len(waiting) > AHEAD * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:  # also when whoever asked loses interest
        pool.shutdown(cancel_futures=True)


def _load(path: Path, channels: int, size: tuple[int, int] | None) -> Loaded | InputError:
    try:
        image, notes = _decoded(path, None), tuple[str, ...]()
        if len(image) != channels:
            notes = (GRAY_REPEATED if channels == 3 else TURNED_TO_GRAY,)
            image = _decoded(path, channels)
        image, change = with_size(image, size)
        return image, notes + change
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"{path}: not enough memory for an image of this size")


def _decoded(path: Path, channels: int | None) -> Pixels:
    with open_file(path) as file:
        try:
            return decode_image(file, channels)
        except InputError as error:
            raise InputError(f"{path} {error}") from None
