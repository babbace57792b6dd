"""Which model a command uses: the one that is named, the newest run's, or one that ships."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cae_raw.data.folder import list_images
from cae_raw.data.image_file import image_channels
from cae_raw.data.lmdb_datum import DatumReader
from cae_raw.data.local import require_folder
from cae_raw.errors import InputError
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.loading import find_run, load_checkpoint, pretrained
from cae_raw.training.run_dir import newest_run


def choose_model(
    run: Path | None, checkpoint: Path | None, runs_dir: Path, channels: Callable[[], int]
) -> tuple[Checkpoint, str]:
    """The checkpoint to use, and what to call it.

    `channels` is asked, 1 or 3, where a model that ships with the package is all there is.
    """
    if run is not None and checkpoint is not None:
        raise InputError("--run and --checkpoint both name a model: give one of them")
    path = checkpoint or (find_run(run, runs_dir).path if run else None)
    if path is None:
        newest = newest_run(runs_dir)
        path = newest.path if newest else None
    if path is not None:
        return load_checkpoint(path), str(path)
    number = channels()
    kind = {1: "gray", 3: "RGB"}[number]
    return pretrained(number), f"the single-layer model for {kind} images that ships with cae-raw"


def likely_channels(images: Iterable[Path], dataset: str | None, data_dir: Path | None) -> int:
    """1 when all images that can be read are gray, be they files or of the data set; else 3."""
    try:
        if dataset == "lmdb" and data_dir is not None:
            return DatumReader(data_dir).image_shape[0]
        if dataset == "folder" and data_dir is not None:
            require_folder(data_dir, "--data-dir")
            images = (data_dir / name for name in list_images(data_dir))
        elif dataset is not None:
            return 1 if dataset == "mnist" else 3
    except InputError:
        return 3  # reported when the data set is loaded
    gray = False
    for path in images:
        try:
            if image_channels(path) == 3:
                return 3
        except InputError:
            continue  # reported when its turn comes
        gray = True
    return 1 if gray else 3
