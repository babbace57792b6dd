"""What a person sees of a training: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable

import pytest

from cae_raw.commands import train as train_command
from cae_raw.data import Dataset
from cae_raw.models import Autoencoder
from cae_raw.training import progress
from cae_raw.training.optimizers import Adam
from cae_raw.training.progress import BarReporter, LineReporter, duration
from cae_raw.training.session import Reporter
from cae_raw.training.trainer import BatchDone, EpochDone, EpochRecord, Trainer


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (0.6, "0:01"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.6, "1:00:00"),
        (3661, "1:01:01"),
        (100 * 3600 + 59, "100:00:59"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


@pytest.fixture
def trainer(dataset: Dataset, model: Autoencoder) -> Trainer:
    return Trainer(model, dataset, Adam(model), batch_size=10)


def end_of_epoch(trainer: Trainer, epoch: int, is_best: bool = True) -> EpochDone:
    trainer.state.epoch, trainer.state.batch = epoch, 0
    return EpochDone(EpochRecord(epoch, 4 * epoch, 1.25, 2345.6, 0.25, 0.125, 1e-3), is_best)


def test_lines(trainer: Trainer, clock: Clock) -> None:
    out = io.StringIO()
    reporter = LineReporter(out)
    reporter.begin(trainer, 2)
    for images in (10, 10, 10):
        clock.now += 0.5
        reporter.batch(BatchDone(images, 0.5))
    assert out.getvalue() == ""  # too early to speak
    clock.now += 8.5
    reporter.batch(BatchDone(7, 0.5))
    assert out.getvalue() == (
        "epoch 1/2: 50% of the run, half_mse 0.50000, 4 images/s, 0:10 left\n"
    )
    reporter.epoch(end_of_epoch(trainer, 1))
    reporter.epoch(end_of_epoch(trainer, 2, is_best=False))
    reporter.end()
    assert out.getvalue().splitlines()[1:] == [
        "epoch 1/2: train half_mse 0.250000, validation 0.125000 (best), 2,346 images/s, 1.2 s, "
        "0:10 left",
        "epoch 2/2: train half_mse 0.250000, validation 0.125000, 2,346 images/s, 1.2 s",
    ]


def test_a_resumed_run_counts_what_was_done(trainer: Trainer, clock: Clock) -> None:
    out = io.StringIO()
    trainer.state.epoch, trainer.state.batch = 1, 4  # all four batches: 37 images, not 40
    reporter = LineReporter(out)
    reporter.begin(trainer, 3)
    assert reporter.rate.done == 74
    assert reporter.rate.left == "?"
    clock.now += 20
    trainer.state.epoch, trainer.state.batch = 2, 1
    reporter.batch(BatchDone(10, 0.5))
    assert out.getvalue() == (
        "epoch 3/3: 76% of the run, half_mse 0.50000, 0 images/s, 0:54 left\n"
    )


def test_never_more_than_all(trainer: Trainer, clock: Clock) -> None:
    trainer.state.epoch, trainer.state.batch = 2, 4
    reporter = LineReporter(io.StringIO())
    reporter.begin(trainer, 3)
    assert reporter.rate.done == reporter.rate.total == 3 * 37


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, talk: Callable[[io.TextIOWrapper], None]) -> str:
    """What appears on a terminal of 100 columns while `talk(out)` runs."""
    pty = pytest.importorskip("pty")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    terminal, other_end = pty.openpty()
    try:
        with open(other_end, "w", encoding="utf-8") as out:
            talk(out)
            out.flush()
            shown = b""
            os.set_blocking(terminal, False)
            while True:
                try:
                    shown += os.read(terminal, 65536)
                except BlockingIOError:
                    break
    finally:
        os.close(terminal)
    return shown.decode()


def test_bar_on_a_terminal(trainer: Trainer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(out: io.TextIOWrapper) -> None:
        reporter = train_command._reporter(out)
        assert isinstance(reporter, BarReporter)
        reporter.begin(trainer, 2)
        clock.now += 5.0
        reporter.batch(BatchDone(10, 0.125))
        reporter.progress.refresh()
        reporter.epoch(end_of_epoch(trainer, 1))
        reporter.batch(BatchDone(10, 0.0625))
        reporter.end()

    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(monkeypatch, talk))
    assert "epoch 1/2" in shown and "epoch 2/2" in shown
    assert "14%" in shown  # 10 of 74
    assert "half_mse 0.12500  2 images/s  0:32 left" in shown
    assert "half_mse 0.06250  4 images/s  0:14 left" in shown
    line = "epoch 1/2: train half_mse 0.250000, validation 0.125000 (best), 2,346 images/s, 1.2 s"
    assert f"{line}\r\n" in shown


def test_no_bar_elsewhere() -> None:
    assert isinstance(train_command._reporter(io.StringIO()), LineReporter)


@pytest.mark.parametrize("kind", [LineReporter, None])
def test_reporters_follow_a_training(
    kind: type[LineReporter] | None, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real trainer, for both kinds: the count ends at all images of all epochs."""

    def talk(out: io.TextIOBase) -> None:
        reporter: Reporter = kind(out) if kind else train_command._reporter(out)  # type: ignore
        reporter.begin(trainer, 3)
        for done in trainer.steps(3):
            (reporter.epoch if isinstance(done, EpochDone) else reporter.batch)(done)  # type: ignore
        reporter.end()
        assert reporter.rate.done == reporter.rate.total == 3 * 37  # type: ignore[attr-defined]

    if kind is None:
        text = on_a_terminal(monkeypatch, talk)
    else:
        out = io.StringIO()
        talk(out)
        text = out.getvalue()
    for epoch in (1, 2, 3):
        assert (
            len(re.findall(rf"epoch {epoch}/3: train half_mse 0\.\d{{6}}, validation", text)) == 1
        )
