"""`cae-raw report`: all about some runs in one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cae_raw.backends import Backend, choose_backend
from cae_raw.commands.data import Announcer
from cae_raw.commands.options import check_threads
from cae_raw.commands.run_images import Choice, view_of
from cae_raw.commands.shell import one_line
from cae_raw.commands.show import Shown
from cae_raw.errors import InputError
from cae_raw.files import atomic_write
from cae_raw.pictures.figures import FIGURES, WITHOUT_IMAGES, pictures
from cae_raw.pictures.layout import to_image
from cae_raw.pictures.view import View
from cae_raw.report.differences import labels
from cae_raw.report.html import Figure, Group, Page, Strip, psnr_words
from cae_raw.report.images import MOST, by_images
from cae_raw.report.inline import exact, fitted
from cae_raw.report.runs import Trained, find_runs, read_runs
from cae_raw.report.table import notes, rows
from cae_raw.training.loading import find_run

LARGEST_PAGE = 3_000_000  # bytes
AROUND = 700  # bytes, with a picture: its description, twice
LEAST = 250_000  # bytes for the pictures of one run, while there are any left
STRIP_PIXELS = 192  # of an image's longer side, beyond which it is shown reduced


def report(
    paths: Sequence[Path],
    *,
    choice: Choice,
    out: Path,
    runs_dir: Path,
    device: str,
    threads: int | None,
    say: TextIO,
) -> dict[str, Any]:
    """Write the page on the runs that are named or lie below what is named (none: the newest)."""
    from threadpoolctl import threadpool_limits

    check_threads(threads)
    choice.check()
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file, as {out / 'report.html'}")
    backend = choose_backend(device)
    found, left_out = find_runs(paths or [find_run(None, runs_dir).path])
    runs = read_runs(found)
    names = labels(runs)
    remarks, table = left_out + notes(runs), rows(runs)
    bare = Page(runs, names, table, remarks).html()
    maker = _Maker(runs, names, backend, choice, say, remarks, LARGEST_PAGE - len(bare.encode()))
    with threadpool_limits(threads, user_api="blas"):
        maker.look()
    page = Page(runs, names, table, maker.notes, maker.groups, maker.figures)
    data = page.html().encode()
    atomic_write(out, data)
    for note in maker.notes:
        print(one_line(note), file=say)
    print(f"{one_line(out)}: {_runs(len(runs))}, {len(data):,} bytes", file=say)
    return {"report": str(out), "bytes": len(data), "runs": table, "notes": maker.notes}


@dataclass
class _Maker:
    """Collects what is to be seen of the runs, within what a page may hold."""

    runs: Sequence[Trained]
    names: Sequence[str]
    backend: Backend
    choice: Choice
    say: TextIO
    notes: list[str]
    left: int  # bytes
    groups: list[Group] = field(default_factory=list)
    figures: dict[int, list[Figure]] = field(default_factory=dict)

    def look(self) -> None:
        """At all runs, those with the same images together."""
        groups = by_images(self.runs, self.choice.split)
        numbers = {id(run): i for i, run in enumerate(self.runs)}
        views: dict[int, View] = {}
        for group in groups:
            shown = self.choice.of(group, alone=len(groups) == 1)
            if isinstance(shown, str):
                self.notes.append(f"{group[0].data['name']}: no images are shown: {shown}")
            images = shown if isinstance(shown, Shown) else None
            mine = {
                numbers[id(run)]: view_of(run, self.names[numbers[id(run)]], images, self.backend)
                for run in group
            }
            if images is not None:
                self._reconstructions(images, mine)
            views |= mine
        self._pictures(dict(sorted(views.items())))

    def _reconstructions(self, shown: Shown, views: dict[int, View]) -> None:
        first = next(iter(views.values()))
        run = self.runs[next(iter(views))]
        words = f"{run.data['name']}, {self.choice.split} split, first: {shown.name}"
        inputs = _strip(first.images[:MOST], [""] * len(first.images[:MOST]))
        outputs = {}
        cost = _size(inputs)
        for i, view in views.items():
            figures = view.figures[:MOST]
            strip = _strip(view.outputs[:MOST], psnr_words([each.psnr for each in figures]))
            cost += _size(strip)
            if cost > self.left // 2:
                self.notes.append(
                    f"reconstructions of {self.names[i]} and later runs are left out, to keep the "
                    "page small"
                )
                break
            outputs[i] = strip
        if outputs:
            self.left -= sum(map(_size, [inputs, *outputs.values()]))
            self.groups.append(Group(words, inputs, outputs))

    def _pictures(self, views: dict[int, View]) -> None:
        """Those of `cae-raw show` but for the curves, which the page draws itself."""
        announcer = Announcer(self.say)
        without = []
        for done, (i, view) in enumerate(views.items()):
            names = FIGURES if view.has_images else WITHOUT_IMAGES
            weights = [len(each.stages) for each in list(views.values())[done:]]
            share = max(LEAST, self.left * weights[0] // sum(weights))
            packed = None
            if share <= self.left:
                drawn = list(pictures(view, [name for name in names if name != "curves"]))
                packed = fitted([picture.image for picture in drawn], share - AROUND * len(drawn))
            if packed is None:
                without.append(self.names[i])
            else:
                self.left -= sum(len(image.uri) + AROUND for image in packed)
                self.figures[i] = [
                    Figure(image, picture.shows)
                    for image, picture in zip(packed, drawn, strict=True)
                ]
            announcer.tell("runs drawn", done + 1, len(views))
        if without:
            self.notes.append(
                f"pictures of {_runs(len(without))} are left out, to keep the page small: make a "
                "report of fewer runs, or look at them with `cae-raw show`"
            )


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _strip(images: Any, words: Sequence[str]) -> Strip:
    """Images (N, C, H, W) as they are, large ones reduced by a whole number."""
    share = -(-max(images.shape[2:]) // STRIP_PIXELS)
    pieces = [to_image(np.asarray(image)).reduce(share) for image in images]
    return Strip([exact(piece) for piece in pieces], list(words))


def _size(strip: Strip) -> int:
    return sum(len(image.uri) + AROUND for image in strip.images)
