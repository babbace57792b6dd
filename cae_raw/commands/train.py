"""`cae-raw train`: find the data, find or make the run, train, say what to type next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TextIO

from cae_raw.backends import choose_backend
from cae_raw.commands.data import CACHES, load_data
from cae_raw.commands.light_imports import load_tensorboardx
from cae_raw.commands.options import check_images_every, check_options
from cae_raw.data.base import Dataset
from cae_raw.errors import InputError
from cae_raw.models.summary import summarize
from cae_raw.ops.precision import check_precision
from cae_raw.training.config import TrainConfig
from cae_raw.training.events import EventRecorder
from cae_raw.training.progress import BarReporter, LineReporter
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import Outcome, Reporter, RunSession


def train(
    config: TrainConfig,
    *,
    epochs: int,
    data_dir: Path | None,
    runs_dir: Path,
    restart: bool,
    device: str,
    threads: int | None,
    save_every_seconds: float,
    tensorboard: bool,
    images_every: int | None,
    cache: bool = True,
    out: TextIO,
) -> Outcome:
    """Train the run that `config` names for `epochs` epochs in all; talk to `out`."""
    check_options(config, epochs, threads, save_every_seconds)
    check_images_every(images_every, tensorboard)
    if not cache and config.dataset != "folder":
        raise InputError(
            "--no-cache needs --dataset folder to have an effect: add that, or omit --no-cache"
        )
    if config.size is not None:
        config.check_images(config.size, config.size)  # before images are made that size
    backend = choose_backend(device)
    check_precision(config.precision, backend)
    cache_dir = runs_dir / CACHES if cache else None
    dataset = load_data(config, data_dir, out, cache_dir, must_cache=True)
    config.check_images(*dataset.train.image_shape[1:])
    config.check_precision(dataset.train.image_shape[0])
    run = RunDir(runs_dir / config.run_name())
    with run.locked():  # not before it is known that training can begin
        if restart:
            _confirm_restart(run, out)
            run.clear()
        _describe(config, dataset, run, backend.name, out)
        session = RunSession(config, dataset, run, backend=backend, threads=threads)
        for line in summarize(session.trainer.model, dataset.train.image_shape).lines():
            print(line, file=out)
        state = session.trainer.state
        if session.resumed and state.epoch >= epochs:
            print(
                f"this run has finished {_count(state.epoch, 'epoch')}, best validation half_mse "
                f"{state.best:.6f} in epoch {state.best_epoch}; a larger --epochs trains on, "
                "--restart begins anew",
                file=out,
            )
        elif session.resumed:
            batches = f" and {_count(state.batch, 'batch', 'es')}" if state.batch else ""
            print(f"resuming after {_count(state.epoch, 'epoch')}{batches}", file=out)
        recorder = None
        if tensorboard:
            load_tensorboardx()
            recorder = EventRecorder(run, images_every)
        outcome = session.train(epochs, _reporter(out), save_every_seconds, recorder)
    _say_what_next(outcome, data_dir if config.data_dir is None else None, out)
    if tensorboard and outcome.signal is None:
        print(f"  {shlex.join(['tensorboard', '--logdir', str(runs_dir)])}", file=out, flush=True)
    return outcome


def _confirm_restart(run: RunDir, out: TextIO) -> None:
    """Ask before a run is deleted, where there is one and a person can answer."""
    if run.last.exists() and sys.stdin.isatty() and out.isatty():
        import typer

        question = f"Delete the checkpoints and figures in {run.path}?"
        if not typer.confirm(question, err=out is sys.stderr):
            raise InputError("nothing was deleted: without --restart the run is resumed")


def _describe(config: TrainConfig, dataset: Dataset, run: RunDir, device: str, out: TextIO) -> None:
    c, h, w = dataset.train.image_shape
    print(
        f"{config.model} on {dataset.name}: {len(dataset.train):,} training images of "
        f"{c}x{h}x{w}, {len(dataset.validation):,} validation, {len(dataset.test):,} test; "
        f"on {device}",
        file=out,
    )
    for note in dataset.notes:
        print(note, file=out)
    print(f"run: {run.path}", file=out, flush=True)


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


def _reporter(out: TextIO) -> Reporter:
    if not out.isatty():
        return LineReporter(out)
    from rich.console import Console

    return BarReporter(Console(file=out))


def _say_what_next(outcome: Outcome, data_dir: Path | None, out: TextIO) -> None:
    """What to type next; with `data_dir`, where that is not in the run's configuration."""
    run = outcome.run
    if outcome.signal is not None:
        again = ["cae-raw", *(word for word in sys.argv[1:] if word != "--restart")]
        print(
            f"stopped after {outcome.state.step} steps; everything is saved. To go on:\n"
            f"  {shlex.join(again)}",
            file=out,
            flush=True,
        )
        return
    assert outcome.validation is not None and outcome.test is not None
    for split, figures in (("validation", outcome.validation), ("test", outcome.test)):
        print(
            f"{split}: half_mse {figures.half_mse:.6f}, mse {figures.mse:.6f}, "
            f"PSNR {figures.psnr:.2f} dB (best checkpoint, epoch {outcome.state.best_epoch})",
            file=out,
        )
    if outcome.peak_memory_bytes is not None:
        print(f"peak memory: {outcome.peak_memory_bytes / 2**20:,.0f} MiB", file=out)
    found = [] if data_dir is None else ["--data-dir", str(data_dir)]
    print(
        f"the run is in {run.path}\n"
        f"look at {run.reconstructions}\n"
        "next:\n"
        f"  {shlex.join(['cae-raw', 'evaluate', str(run.path), *found])}\n"
        f"  {shlex.join(['cae-raw', 'show', str(run.path), *found])}\n"
        f"  {shlex.join(['cae-raw', 'reconstruct', '--run', str(run.path), 'IMAGE.png'])}",
        file=out,
        flush=True,
    )
