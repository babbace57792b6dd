"""`cae-raw show`: what a trained model looks like inside, as pictures in files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from cae_raw.backends import choose_backend
from cae_raw.commands.data import cache_near
from cae_raw.commands.options import check_threads
from cae_raw.commands.shell import one_line
from cae_raw.commands.split_choice import check_split_options, choose_dataset
from cae_raw.data.access import find_image, find_split
from cae_raw.data.base import Dataset
from cae_raw.data.image_file import load_image
from cae_raw.errors import InputError, unknown_name
from cae_raw.fit import fit, with_size
from cae_raw.models import Autoencoder
from cae_raw.pictures.figures import FIGURES, WITHOUT_IMAGES, pictures
from cae_raw.pictures.save import save_png
from cae_raw.pictures.view import View
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.loading import find_run, load_checkpoint
from cae_raw.training.trainer import TrainState

SHOWN_IMAGES = 16
LARGEST_IMAGE = 512  # pixels of an image's longer side: its maps are shown smaller than that anyway
DEFAULT_OUT = Path("pictures")  # for a checkpoint that is named without its run


class Shown(NamedTuple):
    """Images for the pictures, the one in focus first, what to call that one, and notes on it."""

    images: NDArray[np.uint8] | None
    name: str
    notes: tuple[str, ...] = ()


def show(
    run: Path | None,
    *,
    checkpoint: Path | None,
    image: Path | None,
    index: int | None,
    class_name: str | None,
    split: str | None,
    data_dir: Path | None,
    only: Sequence[str],
    out: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    say: TextIO,
) -> dict[str, Any]:
    """Write the pictures of a run's best checkpoint, or of a checkpoint file; tell `say` of each.

    Returns what was written, for JSON.
    """
    from threadpoolctl import threadpool_limits

    check_threads(threads)
    _check_choice(run, checkpoint, image, index, class_name, split, data_dir)
    for name in only:
        if name not in FIGURES:
            raise unknown_name("picture", name, FIGURES)
    backend = choose_backend(device)
    found = None if checkpoint else find_run(run, runs_dir)
    title = found.path if found else checkpoint
    assert title is not None
    loaded = load_checkpoint(title)
    model = loaded.build_model()
    if only and set(only) <= set(WITHOUT_IMAGES):
        shown = Shown(None, "no image")
    elif image is not None:
        shown = _from_file(model, image)
    else:
        cache_dir = cache_near(runs_dir, found.path if found else None, checkpoint)
        shown = _from_split(
            model, loaded, index or 0, class_name, split or "test", data_dir, cache_dir
        )
    model.to(backend)
    history = (found.read_metrics() if found else []) or TrainState.from_json(loaded.state).history
    view = View(
        model,
        shown.images,
        focus_name=shown.name,
        name=title.resolve().name,
        history=history,
        epoch=loaded.state.get("epoch"),
    )
    folder = out or (found.pictures if found else DEFAULT_OUT)
    make_folder(folder)
    what = "" if shown.images is None else f"; maps and output of {one_line(shown.name)}"
    print(f"model: {title}, epoch {view.epoch}{what}", file=say)
    for note in shown.notes:
        print(f"  {note}", file=say)
    with threadpool_limits(threads, user_api="blas"):
        written = _write(view, list(dict.fromkeys(only)) or list(FIGURES), folder, say)
    if only and not written:
        raise InputError(f"{view.model.name} has no {' or '.join(only)} to show: omit --only")
    return {
        "model": str(title),
        "epoch": view.epoch,
        "image": None if shown.images is None else shown.name,
        "notes": list(shown.notes),
        "pictures": written,
    }


def _check_choice(
    run: Path | None,
    checkpoint: Path | None,
    image: Path | None,
    index: int | None,
    class_name: str | None,
    split: str | None,
    data_dir: Path | None,
) -> None:
    """Raise InputError for options that exclude each other or are out of range."""
    if run is not None and checkpoint is not None:
        raise InputError("RUN and --checkpoint both name a model: give one of them")
    others = {"--index": index, "--class": class_name, "--split": split, "--data-dir": data_dir}
    for option, value in others.items():
        if image is not None and value is not None:
            raise InputError(f"--image and {option} both name an image: give one of them")
    check_index(index)
    check_split_options(None, split or "test", None)


def check_index(index: int | None) -> None:
    """Raise InputError unless an image can have this number."""
    if index is not None and not 0 <= index < 2**31:
        raise InputError(f"--index must be from 0 to {2**31 - 1}, not {str(index)[:30]}")


def _from_file(model: Autoencoder, path: Path) -> Shown:
    """An image file as the model takes it, no larger than can be looked at."""
    pixels = load_image(path)
    notes: tuple[str, ...] = ()
    height, width = pixels.shape[1:]
    largest = max(height, width)
    if model.image_size is None and largest > LARGEST_IMAGE:
        share = LARGEST_IMAGE / largest
        pixels, notes = with_size(
            pixels, (max(1, round(height * share)), max(1, round(width * share)))
        )
    pixels, more = fit(model, pixels)
    return Shown(pixels[None], path.name, notes + more)


def _from_split(
    model: Autoencoder,
    loaded: Checkpoint,
    index: int,
    class_name: str | None,
    split_name: str,
    data_dir: Path | None,
    cache_dir: Path | None,
) -> Shown:
    """The chosen image of the run's data set, and others of its split."""
    dataset, _ = choose_dataset(None, data_dir, None, loaded, model, sys.stderr, cache_dir)
    return choose_images(model, dataset, index, class_name, split_name)


def choose_images(
    model: Autoencoder, dataset: Dataset, index: int, class_name: str | None, split_name: str
) -> Shown:
    """The chosen image of a split, and behind it the first ones, as the model takes them.

    Raises:
        InputError: if there is no such image.
    """
    split, label = find_split(dataset, split_name), None
    if class_name is not None:
        if not dataset.class_names:
            raise InputError(f"{dataset.name} has no names of classes: choose with --index")
        if class_name not in dataset.class_names:
            raise unknown_name("class", class_name, dataset.class_names)
        label = dataset.class_names.index(class_name)
    if not len(split):
        raise InputError(f"the {split_name} split of {dataset.name} is empty: name another --split")
    chosen = find_image(split, index, label)
    if chosen is None:
        of_class = f" of class {class_name}" if class_name else ""
        raise InputError(
            f"--index {index}: the {split_name} split of {dataset.name} has fewer images"
            f"{of_class}; they are counted from 0"
        )
    words = f"{split_name} image {chosen.number}"
    if chosen.label is not None and chosen.label < len(dataset.class_names):
        words += f" ({dataset.class_names[chosen.label]})"
    others = np.asarray(split.first(SHOWN_IMAGES))
    others = others[np.arange(len(others)) != chosen.number][: SHOWN_IMAGES - 1]
    fitted = [fit(model, pixels) for pixels in (chosen.pixels, *others)]
    return Shown(np.stack([pixels for pixels, _ in fitted]), words, fitted[0][1])


def make_folder(folder: Path) -> None:
    """Raise InputError unless there is such a folder, or it can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder}: {error.strerror}; name another with --out"
        ) from error


def _write(view: View, names: Sequence[str], folder: Path, say: TextIO) -> list[dict[str, Any]]:
    """Draw and write the pictures one by one."""
    written = []
    for picture in pictures(view, names):
        path = folder / f"{picture.name}.png"
        ranges = {words: list(ends) for words, ends in picture.ranges.items()}
        save_png(
            picture.image,
            path,
            {"Title": picture.name, "Description": picture.shows, "Ranges": json.dumps(ranges)},
        )
        written.append(
            {
                "name": picture.name,
                "path": str(path),
                "shows": picture.shows,
                "width": picture.image.width,
                "height": picture.image.height,
                "ranges": ranges,
            }
        )
        print(f"{one_line(path)}: {picture.shows}", file=say, flush=True)
    return written
