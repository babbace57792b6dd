"""`cae-raw reconstruct`: choose a model, push images through it, report each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from cae_raw.backends import choose_backend
from cae_raw.commands.data import cache_near
from cae_raw.commands.model_choice import choose_model, likely_channels
from cae_raw.commands.options import check_threads
from cae_raw.commands.shell import one_line, say_error
from cae_raw.commands.split_choice import check_split_options, choose_dataset
from cae_raw.data.access import find_split
from cae_raw.errors import InputError
from cae_raw.figures import Figures
from cae_raw.models import Autoencoder
from cae_raw.reconstruct_files import FileResult, find_files, reconstruct_files
from cae_raw.reconstruct_split import PairResult, overall, reconstruct_split

DEFAULT_OUT = Path("reconstructions")  # for images of a data set, which have no folder of their own
DEFAULT_COUNT = 16


def reconstruct(
    images: list[Path],
    *,
    dataset: str | None,
    count: int | None,
    split: str | None,
    data_dir: Path | None,
    size: int | None,
    tile: bool,
    run: Path | None,
    checkpoint: Path | None,
    out: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    say: TextIO,
) -> tuple[dict[str, Any], bool]:
    """Reconstruct files, or images of a data set where `dataset` or `count` is given.

    Tells `say` of each. Returns a report for JSON, and whether any file failed.
    """
    from threadpoolctl import threadpool_limits

    check_threads(threads)
    from_dataset = dataset is not None or count is not None
    if images and from_dataset:
        raise InputError("image files and --dataset or --count name images: give one of them")
    if not from_dataset:
        _refuse_without_dataset({"--split": split, "--data-dir": data_dir, "--size": size})
    check_split_options(dataset, split or "test", size)
    if count is not None and not 1 <= count < 2**31:
        raise InputError(f"--count must be from 1 to {2**31 - 1}, not {str(count)[:30]}")
    backend = choose_backend(device)
    files = (found for found in find_files(images) if isinstance(found, Path))
    model_from, name = choose_model(
        run, checkpoint, runs_dir, lambda: likely_channels(files, dataset, data_dir)
    )
    model = model_from.build_model()
    _check_tile(model, tile)
    chosen, where = None, out or DEFAULT_OUT
    if from_dataset:
        cache_dir = cache_near(runs_dir, run, checkpoint)
        chosen, folder = choose_dataset(
            dataset, data_dir, size, model_from, model, sys.stderr, cache_dir
        )
        _keep_inputs(where, folder)
    model.to(backend)
    print(f"model: {name}", file=say, flush=True)
    with threadpool_limits(threads, user_api="blas"):
        if chosen is None:
            return _files(model, name, images, out, tile, say)
        part = split or "test"
        wanted = find_split(chosen, part)
        shown = min(count or DEFAULT_COUNT, len(wanted))
        print(f"{chosen.name}, {part}: {shown:,} of {len(wanted):,} images", file=say, flush=True)
        prefix = f"{chosen.name}/{part}"
        results = reconstruct_split(
            model, wanted, shown, where, prefix, lambda r: _tell_pair(r, say), tile=tile
        )
    figures = overall(results, model)
    print(f"all {len(results):,}: {figures}", file=say)
    report = {
        "model": name,
        "dataset": chosen.name,
        "split": part,
        "tiled": tile,
        "images": [result.to_json() for result in results],
        "all": figures.to_json(),
    }
    return report, False


def _refuse_without_dataset(options: dict[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise InputError(
                f"{option} needs --dataset or --count to have an effect: add one of them, or omit "
                f"{option}"
            )


def _check_tile(model: Autoencoder, tile: bool) -> None:
    if tile and model.image_size is None:
        raise InputError(
            f"--tile is for models of one image size, but {model.name} takes images of any size "
            "as they are: omit --tile"
        )


def _keep_inputs(out: Path, folder: Path | None) -> None:
    """Numbered pictures replace those of earlier calls, so they may not lie among the inputs."""
    if folder is not None and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{out} lies in the data set's folder {folder}: give another --out")


def _files(
    model: Autoencoder, name: str, images: list[Path], out: Path | None, tile: bool, say: TextIO
) -> tuple[dict[str, Any], bool]:
    results = reconstruct_files(model, images, out, lambda r: _tell_file(r, say), tile=tile)
    failed = [result for result in results if result.error is not None]
    if failed and len(results) > 1:
        print(f"{len(failed)} of {len(results)} files could not be used", file=sys.stderr)
    report = {"model": name, "tiled": tile, "images": [result.to_json() for result in results]}
    return report, bool(failed)


def _tell_file(result: FileResult, say: TextIO) -> None:
    if result.error is not None:
        say_error(result.error)
        return
    assert result.figures is not None
    paths = [result.reconstruction, result.comparison]
    lines = [f"  {one_line(path)}" for path in paths]
    _tell(one_line(result.path), result, result.figures, lines, say)


def _tell_pair(result: PairResult, say: TextIO) -> None:
    name = f"{one_line(result.input)}, {one_line(result.output.name)}"
    _tell(name, result, result.figures, [], say)


def _tell(
    name: str, result: FileResult | PairResult, figures: Figures, lines: list[str], say: TextIO
) -> None:
    print(f"{name}: {result.width}x{result.height}, {figures}", file=say)
    for line in [*lines, *(f"  {note}" for note in result.notes)]:
        print(line, file=say)
    say.flush()
