"""`cae-raw data`: making databases of images, and looking into them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TextIO

from cae_raw.commands.data import Announcer
from cae_raw.commands.options import check_threads
from cae_raw.commands.shell import one_line
from cae_raw.data.convert import Converted, ConvertOptions, find_images
from cae_raw.data.convert import convert as convert_images
from cae_raw.data.inspect_lmdb import Inspection
from cae_raw.data.inspect_lmdb import inspect as inspect_lmdb
from cae_raw.errors import InputError
from cae_raw.files import atomic_write

SHOWN = 5  # lines of a kind that are printed
MAX_COUNT = 4096  # images in a grid


def convert(
    source: Path,
    out: Path,
    options: ConvertOptions,
    *,
    list_file: Path | None,
    shuffle: bool,
    seed: int | None,
    overwrite: bool,
    say: TextIO,
) -> dict[str, Any]:
    """Make a database of images and tell `say` about it.

    Images that were left out are listed in a file beside it, OUT.skipped.txt.

    Returns:
        `records`, `skipped` (how many), `skipped_list` (the file, or None), `labels` by class name.
    """
    check_threads(options.threads)
    if seed is not None and not shuffle:
        raise InputError("--seed needs --shuffle to have an effect: add that, or omit --seed")
    started = time.perf_counter()
    images, classes = find_images(source, list_file, shuffle, seed or 0)
    announcer = Announcer(say)
    done = convert_images(
        source, images, out, options, overwrite=overwrite, progress=announcer.tell
    )
    seconds = time.perf_counter() - started
    listed = _list_skipped(out, done)
    size = (out / "data.mdb").stat().st_size
    print(
        f"{out}: {done.records:,} records of {options.channels}x{options.size}x{options.size}, "
        f"{size / 2**20:,.1f} MiB, in {seconds:.1f} s",
        file=say,
    )
    if classes:
        named = ", ".join(f"{i} {one_line(name)}" for i, name in enumerate(classes[:SHOWN]))
        more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
        print(f"labels: {named}{more}", file=say)
    if listed is not None:
        for line in done.skipped[:SHOWN]:
            print(f"left out: {one_line(line)}", file=say)
        print(f"{len(done.skipped)} of {len(images)} images were left out: see {listed}", file=say)
    return {
        "path": str(out),
        "records": done.records,
        "image_shape": [options.channels, options.size, options.size],
        "bytes": size,
        "seconds": seconds,
        "labels": {name: i for i, name in enumerate(classes)},
        "skipped": len(done.skipped),
        "skipped_list": None if listed is None else str(listed),
    }


def _list_skipped(out: Path, done: Converted) -> Path | None:
    """Write, or remove, the file that says which images were left out and why."""
    path = out.with_name(out.name + ".skipped.txt")
    if not done.skipped:
        path.unlink(missing_ok=True)
        return None
    lines = "".join(f"{one_line(line)}\n" for line in done.skipped)
    atomic_write(path, lines.encode("utf-8", "backslashreplace"))
    return path


def inspect(
    path: Path, *, count: int, grid: Path | None, channel_order: str, say: TextIO
) -> dict[str, Any]:
    """Look at all records of a database; the first `count` images go into a picture, `grid`.

    Returns:
        `Inspection.to_json()`, with `grid` where a picture was written.
    """
    if not 1 <= count <= MAX_COUNT:
        raise InputError(f"--count must be at least 1 and at most {MAX_COUNT}, not {count}")
    kept = count if grid is not None else 0
    found = inspect_lmdb(path, channel_order, kept, Announcer(say).tell)
    if not found.records and not found.damaged:
        raise InputError(f"{path} is an LMDB without records: nothing can be read from it")
    for line in _report(found):
        print(line, file=say)
    report = found.to_json()
    if grid is not None:
        if not found.first:
            raise InputError(f"no image of {path} can be shown: nothing was written to {grid}")
        _save_grid(found, grid)
        print(f"the first {len(found.first)} images: {grid}", file=say)
        report["grid"] = str(grid)
    return report


def _report(found: Inspection) -> list[str]:
    kinds = f", {found.encoded:,} of them encoded" if found.encoded else ", none of them encoded"
    lines = [f"records   {found.records:,}{kinds}"]
    shapes = [f"{c}x{h}x{w} ({n:,})" for (c, h, w), n in found.shapes.most_common(SHOWN)]
    more = f" and {len(found.shapes) - SHOWN} more" if len(found.shapes) > SHOWN else ""
    lines.append(f"shapes    {', '.join(shapes) or 'none'}{more}")
    labels = [f"{label} ({n:,})" for label, n in sorted(found.labels.items())[:SHOWN]]
    more = f" and {len(found.labels) - SHOWN} more" if len(found.labels) > SHOWN else ""
    lines.append(f"labels    {', '.join(labels) or 'none'}{more}")
    if found.low is not None:
        lines.append(f"values    {found.low} to {found.high} (all records)")
    if found.damaged:
        lines += [f"damage    {one_line(line)}" for line in found.damage[:SHOWN]]
        if found.damaged > SHOWN:
            lines.append(f"damage    and {found.damaged - SHOWN:,} more")
    else:
        lines.append("damage    none")
    return lines


def _save_grid(found: Inspection, path: Path, columns: int = 8) -> None:
    from cae_raw.pictures.grid import GAP, LARGEST, TARGET
    from cae_raw.pictures.layout import framed, integer_scale, resized, table, to_image
    from cae_raw.pictures.save import save_png

    pieces = [
        resized(to_image(pixels), integer_scale(pixels.shape[1:], TARGET, LARGEST))
        for _, pixels in found.first
    ]
    rows = [pieces[i : i + columns] for i in range(0, len(pieces), columns)]
    save_png(framed(table(rows, (GAP, GAP))), path)
