"""`cae-raw bench`: options, progress, and the report as tables, JSON and a chart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cae_raw.backends import choose_backend
from cae_raw.commands.options import LARGEST, check_threads
from cae_raw.errors import InputError, unknown_name
from cae_raw.measure.problem import PROBLEMS, Problem
from cae_raw.measure.run import FULL, QUICK, Effort, Run
from cae_raw.measure.table import tables
from cae_raw.models import MODELS
from cae_raw.training.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

QUICK_BATCH = 128
LARGEST_BATCH = 65536
WIDTH = 150  # of tables that do not go to a terminal
LINE_EVERY = 2.0  # seconds between lines of progress that do not


def bench(
    model: str,
    *,
    size: int | None,
    channels: int | None,
    batches: Sequence[int],
    device: str,
    threads: int | None,
    quick: bool,
    out: Path | None,
    say: TextIO,
    effort: Effort | None = None,
) -> dict[str, Any]:
    """Measure a model, tell `say` about it, and write the chart `out` if there is to be one.

    Args:
        batches: images per step, at least one; empty: the model's usual number.
        quick: a few rounds, a smaller batch, and no rival that has to be compiled.
        effort: overrides what `quick` says about rounds.

    Returns:
        What `Run.measure` does, with `chart` where one was written.

    Raises:
        InputError: for options that make no sense.
    """
    from rich.console import Console

    problem = _problem(model, size, channels)
    for batch in batches:
        _check("--batch", batch, LARGEST_BATCH)
    check_threads(threads)
    if out is not None:
        _check_chart(out)
    backend = choose_backend(device)
    if threads is not None and backend.name != "cpu":
        raise InputError(f"--threads has no effect on {backend.name}: omit it, or add --device cpu")
    usual = min(problem.batch, QUICK_BATCH) if quick else problem.batch
    console = Console(file=say) if say.isatty() else Console(file=say, width=WIDTH)
    with _Progress(console) as progress:
        run = Run(
            problem,
            list(dict.fromkeys(batches)) or [usual],
            backend=backend,
            threads=threads,
            effort=effort or (QUICK if quick else FULL),
            tell=progress.tell,
        )
        report = run.measure()
    for part in tables(report):
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    if out is not None:
        from cae_raw.measure.chart import draw, save_figure

        save_figure(draw(report), out)
        console.print(f"chart: {out}", highlight=False, markup=False, soft_wrap=True)
        report["chart"] = str(out)
    return report


def _problem(model: str, size: int | None, channels: int | None) -> Problem:
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    if size is not None:
        _check("--size", size, int(LARGEST["size"]))
    if channels not in (None, 1, 3):
        raise InputError(f"--channels must be 1 or 3, not {str(channels)[:30]}")
    problem = PROBLEMS[model].sized(size, channels)
    problem.build()  # images that are too small for it are refused here
    return problem


def _check(option: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InputError(f"{option} must be from 1 to {most}, not {str(value)[:30]}")


def _check_chart(out: Path) -> None:
    """Refuse, before minutes of measuring, a chart that could not be written after them."""
    if out.suffix != ".png":
        raise InputError(f"--out {out}: give it a name that ends in .png")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise InputError(f"cannot write {out}: it is a folder")


class _Progress:
    """A bar on a terminal; elsewhere a line now and then. Both with the time left."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.console, self.started, self.spoke = console, time.perf_counter(), 0.0
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[info]}"),
                console=console,
                transient=True,
            )
            self.task = self.bar.add_task("", total=1.0, info="")

    def __enter__(self) -> _Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def tell(self, what: str, done: float, total: float) -> None:
        """`what` begins now, and so much of all work is done."""
        seconds = time.perf_counter() - self.started
        left = f", about {duration(seconds * (total - done) / done)} left" if done else ""
        if self.bar is not None:
            self.bar.update(self.task, completed=done / total, info=what + left)
        elif seconds - self.spoke >= LINE_EVERY and done < total:
            self.spoke = seconds
            line = f"{100 * done / total:3.0f}%  {what}{left}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
