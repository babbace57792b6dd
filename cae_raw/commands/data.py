"""Loading a data set for a command, with progress for whoever waits."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from cae_raw.data import DataOptions, load_dataset
from cae_raw.data.base import Dataset
from cae_raw.data.classes import with_classes
from cae_raw.errors import InputError
from cae_raw.training.config import TrainConfig

CACHES = "cached-folders"  # in the runs' folder


def cache_near(runs_dir: Path, run: Path | None, checkpoint: Path | None = None) -> Path | None:
    """The folder of caches beside a run, or a checkpoint in one, or in `runs_dir`; None if none is.

    A training makes it; other commands use it where it is there.
    """
    runs = [run] if run is not None else []
    runs += [checkpoint.resolve().parent] if checkpoint is not None else []
    folders = [*(path.resolve().parent.parent for path in runs), runs_dir]
    return next((path / CACHES for path in folders if (path / CACHES).is_dir()), None)


def load_data(
    config: TrainConfig,
    data_dir: Path | None,
    out: TextIO,
    cache_dir: Path | None = None,
    *,
    must_cache: bool = False,
) -> Dataset:
    """The data set that `config` names, from `data_dir` or from where the configuration says.

    Tells on `out` how far a download or a scan is, once it takes a while. Images of a folder are
    cached in `cache_dir`; where that fails they are read into memory, unless they must be cached.
    """
    if data_dir is not None and config.dataset == "shapes":  # it would be ignored without a word
        raise InputError(
            "shapes are drawn, not read from --data-dir: for images of your own add "
            "--dataset folder --size PIXELS, or omit --data-dir"
        )
    if data_dir is None and config.data_dir is not None:
        data_dir = Path(config.data_dir)
    size = config.size
    options = DataOptions(
        data_dir=data_dir,
        size=size,
        validation_dir=Path(config.val) if config.val else None,
        channel_order=config.channel_order,
        resize=(size, size) if config.resize and size else None,
        cache_dir=cache_dir,
        progress=Announcer(out).tell,
    )
    try:
        dataset = load_dataset(config.dataset, options)
    except InputError:
        if must_cache or cache_dir is None or config.dataset != "folder":
            raise
        dataset = load_dataset(config.dataset, replace(options, cache_dir=None))
    if config.classes is not None:
        dataset = with_classes(dataset, config.classes, options.progress)
    if config.limit_train is None:
        return dataset
    return replace(dataset, train=dataset.train.limit(config.limit_train))


class Announcer:
    """Prints how far a slow step is: on a terminal over one line, elsewhere a line now and then."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.live = out, out.isatty()
        self.started = self.spoke = time.perf_counter()
        self.what = ""

    def tell(self, what: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if what != self.what:
            self.what, self.started, self.spoke = what, now, now
        finished = total is not None and done >= total
        pause = 0.2 if self.live else 5.0
        if now - self.started < 1.0 or (now - self.spoke < pause and not finished):
            return
        self.spoke = now
        rate = done / (now - self.started)
        line = f"{what}: {done:,}" + (f" of {total:,}" if total else "") + f", {rate:,.0f}/s"
        if total and not finished:
            line += f", {(total - done) / max(rate, 1e-9):.0f} s left"
        end = "\n" if finished or not self.live else ""
        print(f"\r{line:<78}" if self.live else line, end=end, file=self.out, flush=True)
