"""`cae-raw compare`: runs beside each other, as a table, a chart and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from cae_raw.backends import choose_backend
from cae_raw.commands.options import check_threads
from cae_raw.commands.run_images import Choice, view_of
from cae_raw.commands.shell import one_line
from cae_raw.commands.show import Shown, make_folder
from cae_raw.errors import InputError
from cae_raw.files import atomic_write
from cae_raw.pictures.curves import curves_chart
from cae_raw.pictures.page import page
from cae_raw.pictures.save import save_png
from cae_raw.report.differences import differing, labels
from cae_raw.report.images import MOST, by_images, reconstructions_picture
from cae_raw.report.runs import Trained, find_runs, read_runs
from cae_raw.report.table import as_csv, as_lines, more_than_one_range, notes, rows

DEFAULT_OUT = Path("comparison")


def compare(
    paths: Sequence[Path],
    *,
    choice: Choice,
    out: Path | None,
    csv_file: Path | None,
    device: str,
    threads: int | None,
    say: TextIO,
) -> dict[str, Any]:
    """Compare the runs that are named or lie below what is named; returns all of it for JSON."""
    from threadpoolctl import threadpool_limits

    check_threads(threads)
    choice.check()
    backend = choose_backend(device)
    found, left_out = find_runs(paths)
    if len(found) == 1:
        raise InputError(
            f"{found[0].path} is one run only: name others to compare it with, or look at it with "
            "`cae-raw show`"
        )
    runs = read_runs(found)
    names, columns = labels(runs), differing(runs)
    table, remarks = rows(runs), left_out + notes(runs)
    images, why_not = _images(runs, choice)
    if why_not:
        remarks.append(why_not)
    for line in [*as_lines(table), *remarks]:
        print(one_line(line), file=say)

    if csv_file is not None:
        atomic_write(csv_file, as_csv(table, list(columns)))
        print(f"{one_line(csv_file)}: the table", file=say)
    folder = out or DEFAULT_OUT
    make_folder(folder)
    pictures = [
        _save(folder / "curves.png", _curves(runs, names), "errors over epochs of all runs", say)
    ]
    if images is not None:
        with threadpool_limits(threads, user_api="blas"):
            pairs = zip(runs, names, strict=True)
            views = [view_of(run, name, images, backend) for run, name in pairs]
            count = len(views[0].images)
            words = f"{count} images of the {choice.split} split, {images.name} before others"
            picture = reconstructions_picture(names, views, words)
        path = folder / "reconstructions.png"
        pictures.append(_save(path, picture, "the same images by each run", say))
    return {
        "runs": table,
        "differing": columns,
        "notes": remarks,
        "csv": None if csv_file is None else str(csv_file),
        "pictures": pictures,
    }


def _images(runs: Sequence[Trained], choice: Choice) -> tuple[Shown | None, str | None]:
    """Images for all runs, or why there are none."""
    if len(by_images(runs, choice.split)) > 1:
        return None, "reconstructions are left out: these runs do not take the same images"
    shown = choice.of(runs, alone=True)
    if isinstance(shown, str):
        return None, f"reconstructions are left out: {shown}"
    assert shown.images is not None
    return shown._replace(images=shown.images[:MOST]), None


def _curves(runs: Sequence[Trained], names: Sequence[str]) -> Any:
    histories = {name: run.history for name, run in zip(names, runs, strict=True)}
    ranges = {name: run.value_range for name, run in zip(names, runs, strict=True)}
    mixed = more_than_one_range(runs)
    measure = "PSNR, as ranges of values differ" if mixed else "half_mse without penalty"
    chart = curves_chart(histories, ranges=ranges if mixed else None)
    line = f"{measure}; dashed: training, the mean over an epoch; solid: validation"
    return page("Errors over epochs", [line], chart)


def _save(path: Path, picture: Any, shows: str, say: TextIO) -> dict[str, Any]:
    save_png(picture, path, {"Description": shows})
    print(f"{one_line(path)}: {shows}", file=say, flush=True)
    return {"path": str(path), "shows": shows, "width": picture.width, "height": picture.height}
