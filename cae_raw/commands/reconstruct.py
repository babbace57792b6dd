"""`cae-raw reconstruct`: choose a model, push image files through it, report each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from cae_raw.backends import choose_backend
from cae_raw.commands.options import check_threads
from cae_raw.commands.shell import one_line, say_error
from cae_raw.data.image_file import load_image
from cae_raw.errors import InputError
from cae_raw.reconstruct_files import FileResult, reconstruct_files
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.loading import find_run, load_checkpoint, pretrained
from cae_raw.training.run_dir import newest_run


def reconstruct(
    images: list[Path],
    *,
    run: Path | None,
    checkpoint: Path | None,
    out: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    say: TextIO,
) -> tuple[dict[str, Any], bool]:
    """Reconstruct the files, telling `say` of each: a report for JSON, and whether any failed."""
    from threadpoolctl import threadpool_limits

    check_threads(threads)
    backend = choose_backend(device)
    model_from, name = _choose(run, checkpoint, runs_dir, images)
    model = model_from.build_model()
    model.to(backend)
    print(f"model: {name}", file=say, flush=True)

    def tell(result: FileResult) -> None:
        if result.error is not None:
            say_error(result.error)
            return
        print(
            f"{one_line(result.path)}: {result.width}x{result.height}, {result.figures}\n"
            f"  {one_line(result.reconstruction)}\n  {one_line(result.comparison)}",
            file=say,
            flush=True,
        )
        for note in result.notes:
            print(f"  {note}", file=say, flush=True)

    with threadpool_limits(threads, user_api="blas"):
        results = reconstruct_files(model, images, out, tell)
    failed = [result for result in results if result.error is not None]
    if failed and len(results) > 1:
        print(f"{len(failed)} of {len(results)} files could not be used", file=sys.stderr)
    report = {"model": name, "images": [result.to_json() for result in results]}
    return report, bool(failed)


def _choose(
    run: Path | None, checkpoint: Path | None, runs_dir: Path, images: list[Path]
) -> tuple[Checkpoint, str]:
    """The checkpoint to use, and what to call it."""
    if run is not None and checkpoint is not None:
        raise InputError("--run and --checkpoint both name a model: give one of them")
    path = checkpoint or (find_run(run, runs_dir).path if run else None)
    if path is None:
        newest = newest_run(runs_dir)
        path = newest.path if newest else None
    if path is not None:
        return load_checkpoint(path), str(path)
    channels = _channels(images)
    kind = {1: "gray", 3: "RGB"}[channels]
    return pretrained(channels), f"the single-layer model for {kind} images that ships with cae-raw"


def _channels(images: list[Path]) -> int:
    """1 when every image that can be read is gray, else 3."""
    found = set()
    for path in images:
        try:
            found.add(len(load_image(path)))
        except InputError:
            continue  # reported when its turn comes
    return 1 if found == {1} else 3
