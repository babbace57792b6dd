"""When a run's checkpoints and metrics are written.

A save forces three files onto the disk, which can take longer than a whole epoch. So epochs are
saved when `SAVE_SECONDS` have passed since the last save, and at the end; what is due before is
kept in memory. A kill costs the training that long, and the epoch or batch under way; a resume goes
on exactly all the same.

Every checkpoint is complete. `best` is written before `last`, so a kill in between leaves a `best`
that is ahead: `to_resume_from` says which one a training goes on from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from cae_raw.errors import InputError
from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.run_dir import RunDir
from cae_raw.training.trainer import EpochRecord

SAVE_SECONDS = 1.0


def to_resume_from(run: RunDir) -> Checkpoint | None:
    """The checkpoint that is further, of `last` and `best`; None where there is no `last`.

    Raises:
        InputError: if `last` is damaged.
    """
    if not run.last.exists():
        return None
    last = checkpoint.load(run.last)
    with suppress(InputError):  # no `best` yet, or a damaged one, which is no reason to stop
        best = checkpoint.load(run.best)
        if best.state["step"] > last.state["step"]:
            return best
    return last


class Saves:
    """What of a training is on the disk, and what is still to be written.

    Args:
        run: the folder.
        make: a checkpoint of the training as it is now, of arrays that do not change any more.
        flush_events: is called before checkpoints are written, which then stand for no event that
            could be lost.

    Raises:
        InputError: from every method, if a file cannot be written.
    """

    def __init__(
        self,
        run: RunDir,
        make: Callable[[], Checkpoint],
        flush_events: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.make, self.flush_events = run, make, flush_events
        self._best: Checkpoint | None = None
        self._last: Checkpoint | None = None
        self._history: list[EpochRecord] | None = None
        self._written = time.monotonic()

    @property
    def seconds_ago(self) -> float:
        """Since something was written, or the training began."""
        return time.monotonic() - self._written

    def epoch(self, history: list[EpochRecord], *, is_best: bool) -> None:
        """An epoch is over: keep what it leaves, and write it if it is time."""
        self._last = None  # whose memory the new one can have
        self._last, self._history = self.make(), list(history)
        if is_best:
            self._best = self._last
        self.catch_up()

    def catch_up(self) -> None:
        """Write what is kept, if there is something and it is time."""
        if self._last is not None and self.seconds_ago >= SAVE_SECONDS:
            self.write()

    def now(self) -> None:
        """Write at once, also in the middle of an epoch."""
        self._last = None
        self._last = self.make()
        self.write()

    def write(self) -> None:
        """Write whatever is kept; even if events cannot be written, of which some may be lost."""
        try:
            self.flush_events()
        finally:
            self._write()

    def _write(self) -> None:
        if self._best is not None:
            checkpoint.save(self.run.best, self._best)
            self._best = None
        if self._history is not None:
            self.run.write_metrics(self._history)
            self._history = None
        if self._last is not None:
            checkpoint.save(self.run.last, self._last)
            self._last = None
        self._written = time.monotonic()
