"""Telling a person how training goes: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from cae_raw.training.trainer import BatchDone, EpochDone, Trainer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_EVERY = 10.0  # seconds between plain lines inside an epoch


class _Rate:
    """Images per second since the start of this process's training, and the time left."""

    def __init__(self, trainer: Trainer, epochs: int) -> None:
        state = trainer.state
        self.per_epoch = len(trainer.dataset.train)
        self.total = self.per_epoch * epochs
        in_epoch = min(state.batch * trainer.batch_size, self.per_epoch)
        self.done = self.per_epoch * state.epoch + in_epoch
        self.done_here, self.started = 0, time.perf_counter()

    def add(self, images: int) -> None:
        self.done += images
        self.done_here += images

    @property
    def per_second(self) -> float:
        return self.done_here / max(time.perf_counter() - self.started, 1e-9)

    @property
    def left(self) -> str:
        if not self.done_here:
            return "?"
        return duration((self.total - self.done) / max(self.per_second, 1e-9))


class BarReporter:
    """A progress bar over all epochs, with a line above it for each epoch that is done."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = console
        self.progress: Progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[info]}"),
            console=console,
            transient=True,
        )

    def begin(self, trainer: Trainer, epochs: int) -> None:
        self.rate, self.epochs, self.state = _Rate(trainer, epochs), epochs, trainer.state
        self.task: TaskID = self.progress.add_task(
            "", total=self.rate.total, completed=self.rate.done, epoch=self._epoch(), info=""
        )
        self.progress.start()

    def _epoch(self) -> str:
        return f"{min(self.state.epoch + 1, self.epochs)}/{self.epochs}"

    def batch(self, done: BatchDone) -> None:
        self.rate.add(done.images)
        info = (
            f"half_mse {done.half_mse:.5f}  {self.rate.per_second:,.0f} images/s  "
            f"{self.rate.left} left"
        )
        self.progress.update(self.task, completed=self.rate.done, epoch=self._epoch(), info=info)

    def epoch(self, done: EpochDone) -> None:
        self.console.print(epoch_line(done, self.epochs), highlight=False, soft_wrap=True)

    def end(self) -> None:
        self.progress.stop()


class LineReporter:
    """A line per epoch, and one every ten seconds inside a long one."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def begin(self, trainer: Trainer, epochs: int) -> None:
        self.rate, self.epochs, self.state = _Rate(trainer, epochs), epochs, trainer.state
        self.spoke = time.perf_counter()

    def batch(self, done: BatchDone) -> None:
        self.rate.add(done.images)
        if time.perf_counter() - self.spoke < LINE_EVERY:
            return
        self._say(
            f"epoch {self.state.epoch + 1}/{self.epochs}: "
            f"{100 * self.rate.done / self.rate.total:.0f}% of the run, "
            f"half_mse {done.half_mse:.5f}, {self.rate.per_second:,.0f} images/s, "
            f"{self.rate.left} left"
        )

    def epoch(self, done: EpochDone) -> None:
        left = f", {self.rate.left} left" if done.record.epoch < self.epochs else ""
        self._say(epoch_line(done, self.epochs) + left)

    def _say(self, line: str) -> None:
        self.spoke = time.perf_counter()
        print(line, file=self.out, flush=True)

    def end(self) -> None:
        """Nothing is left open."""


def epoch_line(done: EpochDone, epochs: int) -> str:
    """One line on an epoch that is done."""
    r = done.record
    return (
        f"epoch {r.epoch}/{epochs}: train half_mse {r.train_half_mse:.6f}, "
        f"validation {r.validation_half_mse:.6f}{' (best)' if done.is_best else ''}, "
        f"{r.images_per_second:,.0f} images/s, {r.seconds:.1f} s"
    )


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
