"""When a run's checkpoints and metrics are written.

A save forces three files onto the disk, which can take longer than a whole epoch. So it is done at
most once per `SAVE_SECONDS`, and at the end; what is due in between is kept in memory. A kill costs
the training of that time at most, and a resume goes on exactly all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cae_raw.training import checkpoint
from cae_raw.training.checkpoint import Checkpoint
from cae_raw.training.run_dir import RunDir
from cae_raw.training.trainer import EpochRecord

SAVE_SECONDS = 1.0


class Saves:
    """What of a training is on the disk, and what is still to be written.

    Args:
        run: the folder.
        before: is called before `last` is written: whatever shall be on the disk by then.

    Raises:
        InputError: from every method, if a file cannot be written.
    """

    def __init__(self, run: RunDir, before: Callable[[], None] = lambda: None) -> None:
        self.run, self.before = run, before
        self._best: Checkpoint | None = None
        self._last: Checkpoint | None = None
        self._history: list[EpochRecord] | None = None
        self._written = time.monotonic()

    @property
    def seconds_ago(self) -> float:
        """Since something was written, or the training began."""
        return time.monotonic() - self._written

    def epoch(self, ended: Checkpoint, history: list[EpochRecord], *, is_best: bool) -> bool:
        """An epoch is over: keep what it leaves, and write it unless that was done just now.

        Returns:
            Whether it was written.
        """
        if is_best:
            self._best = ended
        self._last, self._history = ended, history
        due = self.seconds_ago >= SAVE_SECONDS
        if due:
            self.write()
        return due

    def now(self, reached: Checkpoint) -> None:
        """Write at once, also in the middle of an epoch."""
        self._last = reached
        self.write()

    def write(self) -> None:
        """Write whatever is kept. `last` comes at the end: it is what a resume reads."""
        if self._best is not None:
            checkpoint.save(self.run.best, self._best)
            self._best = None
        if self._history is not None:
            self.run.write_metrics(self._history)
            self._history = None
        if self._last is not None:
            self.before()
            checkpoint.save(self.run.last, self._last)
            self._last = None
        self._written = time.monotonic()
