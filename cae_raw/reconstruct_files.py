"""Image files through a model: NAME.reconstruction.png and NAME.comparison.png for each.

NAME is the file's name without its last extension. A name is passed over, for NAME-2, NAME-3 and so
on, when a picture of this call has it already or when it would replace one of the inputs, under
whatever path or link those were given. Pictures of earlier calls are replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cae_raw.data.image_file import EXTENSIONS, load_image
from cae_raw.errors import InputError
from cae_raw.figures import Figures
from cae_raw.fit import GRAY_REPEATED, TURNED_TO_GRAY, with_size
from cae_raw.models import Autoencoder
from cae_raw.pictures import comparison, save_png, to_image
from cae_raw.reconstruct import Reconstruction, reconstruct_image

ENDINGS = (".reconstruction.png", ".comparison.png")

Identity = tuple[int, int]  # device and inode: the same for every path that leads to a file


@dataclass(frozen=True)
class FileResult:
    """What became of one file: either `error` is set, or everything else is."""

    path: Path
    error: str | None = None  # one line that names the file
    reconstruction: Path | None = None
    comparison: Path | None = None
    width: int | None = None
    height: int | None = None
    figures: Figures | None = None
    notes: tuple[str, ...] = ()  # lines that the user should read

    def to_json(self) -> dict[str, Any]:
        """Plain values; figures that are not finite are None."""
        values = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(self).items()
            if name != "figures"
        }
        return {**values, "notes": list(self.notes), **(self.figures or NO_FIGURES).to_json()}


NO_FIGURES = Figures(*[float("nan")] * 3)


def reconstruct_files(
    model: Autoencoder,
    paths: Iterable[Path],
    out_dir: Path | None = None,
    on_result: Callable[[FileResult], None] = lambda result: None,
    *,
    tile: bool = False,
) -> list[FileResult]:
    """Reconstruct each file; one that cannot be used becomes a result with an error.

    Images are made to fit the model as `cae_raw.fit` describes, and figures and pictures are those
    of what the model was given. Each change is noted in the result.

    Args:
        model: on the backend that does the work.
        paths: image files. A folder stands for the image files directly in it, in order of name,
            less those that this function wrote.
        out_dir: where the pictures go, made when missing; None puts them beside each image.
        on_result: called after each file.
        tile: for a model of one size: reconstruct at the images' own sizes, in tiles.

    Raises:
        InputError: if `out_dir` cannot be made.
    """
    if out_dir is not None:
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {out_dir}: {error.strerror}") from error
    found = list(find_files(paths))
    taken = {_identity(item) for item in found if isinstance(item, Path)}
    results = []
    for item in found:
        result = item if isinstance(item, FileResult) else _one(model, item, out_dir, taken, tile)
        results.append(result)
        on_result(result)
    return results


def find_files(paths: Iterable[Path]) -> Iterator[Path | FileResult]:
    """The files that are meant, each once; an error for a folder without any."""
    for path in dict.fromkeys(paths):
        if not path.is_dir():
            yield path
            continue
        try:
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS)
        except OSError as error:
            yield FileResult(path, f"cannot read the folder {path}: {error.strerror}")
            continue
        images = [p for p in inside if p.is_file() and not p.name.endswith(ENDINGS)]
        yield from images
        if not images:
            yield FileResult(path, f"no images in the folder {path}: name image files")


def _one(
    model: Autoencoder,
    path: Path,
    out_dir: Path | None,
    taken: set[Identity | None],
    tile: bool,
) -> FileResult:
    try:
        image, notes = _load(path, model.channels)
        if not tile:
            image, change = with_size(image, model.image_size)
            notes += change
        result = reconstruct_image(model, image, tile=tile)
        if result.not_finite:
            share = f"{result.not_finite} of {image.size} values of the reconstruction"
            notes += (f"{share} are not finite numbers: did training diverge?",)
        targets = _targets(out_dir or path.parent, path.stem, taken)
        for target, picture in zip(targets, _pictures(result), strict=True):
            save_png(picture, target)
            taken.add(_identity(target))
    except InputError as error:
        message = str(error)
        return FileResult(path, message if str(path) in message else f"{path}: {message}")
    except MemoryError:
        return FileResult(path, f"{path}: not enough memory for an image of this size")
    _, height, width = image.shape
    return FileResult(path, None, *targets, width, height, result.figures, notes)


def _load(path: Path, channels: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    image = load_image(path)
    if len(image) == channels:
        return image, ()
    return load_image(path, channels), (TURNED_TO_GRAY if channels == 1 else GRAY_REPEATED,)


def _pictures(result: Reconstruction) -> Iterator[Any]:
    """In the order of ENDINGS, one at a time."""
    yield to_image(result.output)
    yield comparison(result.image, result.output, result.error, result.figures)


def _targets(folder: Path, stem: str, taken: set[Identity | None]) -> tuple[Path, Path]:
    for i in count(1):
        name = stem if i == 1 else f"{stem}-{i}"
        first, second = (folder / (name + ending) for ending in ENDINGS)
        if taken.isdisjoint({_identity(first), _identity(second)} - {None}):
            break
    return first, second


def _identity(path: Path) -> Identity | None:
    """Of the file that a path leads to, through links; None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
