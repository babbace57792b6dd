"""Everything that `cae-raw bench` measures, in one run and one report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from typing import Any

import numpy as np

from cae_raw import __version__
from cae_raw.backends import NUMPY, Backend
from cae_raw.machine import blas, cpu_name, gpu
from cae_raw.measure import ceilings
from cae_raw.measure.calls import Call, calls_of_a_step
from cae_raw.measure.ceilings import Ceilings
from cae_raw.measure.clock import FLUSH_BYTES, DeviceClock
from cae_raw.measure.counts import forward_amount, training_amount
from cae_raw.measure.op_times import OpClock, OpTimes
from cae_raw.measure.ours import Ours
from cae_raw.measure.problem import Problem
from cae_raw.measure.race import (
    PAUSE,
    TOLERANCE,
    TOLERANCE_TF32,
    WARM_UP,
    WHATS,
    compare,
    race,
    verdict,
)
from cae_raw.measure.racer import Here, Racer
from cae_raw.measure.rivals import Rivals
from cae_raw.training.engine import available_threads

Tell = Callable[[str, float, float], None]  # what is being done, work done, all work


@dataclass(frozen=True)
class Effort:
    """How thoroughly it is measured.

    Args:
        rounds, op_rounds: turns of each candidate, for steps and for operations.
        turn_ms: how long a turn of an operation takes on the CPU.
        pause, warm_up: seconds before a turn of a step, and before the first.
        compiling: measure rivals that have to be compiled, too.
        ceilings: arguments of `ceilings.on_cpu` and `on_cuda`.
        flush_bytes: that clear a GPU's cache.
    """

    rounds: int = 15
    op_rounds: int = 9
    turn_ms: float = 10.0
    pause: float = PAUSE
    warm_up: float = WARM_UP
    compiling: bool = True
    ceilings: tuple[tuple[str, int], ...] = ()
    flush_bytes: int = FLUSH_BYTES


FULL = Effort()
QUICK = Effort(rounds=3, op_rounds=3, turn_ms=3.0, pause=0.05, compiling=False)


class Run:
    """A measurement of one model.

    Args:
        batches: images per step; operations are measured at the largest.
        threads: of cae-raw and PyTorch on the CPU; None takes all.
        tell: called before each part of the work.
    """

    def __init__(
        self,
        problem: Problem,
        batches: Sequence[int],
        *,
        backend: Backend = NUMPY,
        threads: int | None = None,
        effort: Effort = FULL,
        tell: Tell = lambda *_: None,
    ) -> None:
        self.problem, self.batches, self.backend = problem, list(batches), backend
        self.threads = threads or available_threads()
        self.effort, self.tell = effort, tell
        self.on_gpu = backend is not NUMPY
        self.clock = DeviceClock(backend, effort.flush_bytes) if self.on_gpu else None
        self.model = problem.build()
        self.report: dict[str, Any] = {}
        self._done, self._all = 0.0, 1.0

    def measure(self) -> dict[str, Any]:
        """The report, of plain values.

        Raises:
            InputError: if the model cannot take such images.
        """
        images = self.problem.draw_images(max(self.batches))
        rivals = Rivals(
            self.problem,
            max(self.batches),
            on_gpu=self.on_gpu,
            threads=None if self.on_gpu else self.threads,
            compiling=self.effort.compiling,
        )
        calls = calls_of_a_step(self.problem, images, max(self.batches), self.backend)
        # Weights of the parts, roughly in seconds.
        starts = 1.0 + sum(15.0 if "compile" in rival.mode else 4.0 for rival in rivals.all)
        races = len(self.batches) * len(WHATS)
        self._all = 4 + starts + races * self._race_weight(rivals)
        self._all += len(calls) * self.effort.op_rounds / 20
        self.report = {**self._facts(), "notes": rivals.notes}
        by_steps, by_ops = self._ceilings()
        self._steps(images, rivals, starts, by_steps)
        self._ops(calls, rivals.facts, by_ops)
        return self.report

    def _race_weight(self, rivals: Rivals) -> float:
        each = self.effort.warm_up + self.effort.rounds * (self.effort.pause + 0.5)
        return (1 + len(rivals.all)) * each

    def _facts(self) -> dict[str, Any]:
        return {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "cae_raw": __version__,
            "model": self.problem.model,
            "image_shape": list(self.problem.image_shape),
            "optimizer": self.problem.optimizer,
            "device": self.backend.name,
            "cpu": cpu_name(),
            "gpu": gpu() if self.on_gpu else None,
            "threads": None if self.on_gpu else self.threads,
            "blas": blas(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }

    def _advance(self, what: str, weight: float) -> None:
        self.tell(what, self._done, self._all)
        self._done += weight

    def _ceilings(self) -> tuple[Ceilings, Ceilings]:
        """Of what steps run on, and of what a single operation runs on."""
        self._advance("what the machine can do", 4)
        limits = dict(self.effort.ceilings)
        if self.clock is not None:
            found = {"device": ceilings.on_cuda(self.backend, self.clock, **limits)}
        else:
            found = {
                "all_threads": ceilings.on_cpu(self.threads, **limits),
                "one_thread": ceilings.on_cpu(1, **limits),
            }
        self.report["ceilings"] = {name: c.to_json() for name, c in found.items()}
        return next(iter(found.values())), list(found.values())[-1]

    def _steps(self, images: np.ndarray, rivals: Rivals, starts: float, limits: Ceilings) -> None:
        self.report.update(steps=[], verdicts=[])
        effort = self.effort
        ours = Ours(self.problem, images, backend=self.backend, threads=self.threads)
        racers: list[Racer] = [Here(ours)]
        try:
            self._advance("comparing results", starts)
            racers += rivals.racers()
            tolerance = TOLERANCE_TF32 if self.on_gpu else TOLERANCE
            racers, differences, left_out = compare(racers, self.batches[0], tolerance)
            self.report.update(rivals.facts, differences=differences)
            rivals.notes += left_out
            for batch in self.batches:
                for what in WHATS:
                    self._advance(f"{what}, batch {batch}", self._race_weight(rivals))
                    rows = race(
                        self.problem,
                        racers,
                        len(images),
                        what,
                        batch,
                        effort.rounds,
                        pause=effort.pause,
                        warm_up=effort.warm_up,
                    )
                    self._keep(what, batch, rows, limits)
        finally:
            for racer in racers:
                racer.close()

    def _keep(
        self, what: str, batch: int, rows: dict[str, dict[str, Any]], limits: Ceilings
    ) -> None:
        shape = self.problem.image_shape
        if what == "training":
            amount = training_amount(self.model, shape, batch, self.problem.optimizer)
        else:
            amount = forward_amount(self.model, shape, batch)
        for name, row in rows.items():
            shares = limits.shares(amount, row["ms"] / 1e3)
            step = {"what": what, "batch": batch, "candidate": name, **row, **shares}
            self.report["steps"].append(step)
        self.report["verdicts"].append({"what": what, "batch": batch, **verdict(rows)})

    def _ops(self, calls: list[Call], facts: dict[str, Any], limits: Ceilings) -> None:
        self.report["ops"] = []
        torch = import_module("torch") if "torch" in facts else None
        batch, effort = max(self.batches), self.effort
        timer = OpClock(
            self.backend,
            torch,
            rounds=effort.op_rounds,
            turn_ms=effort.turn_ms,
            clock=self.clock,
        )
        with timer:
            for call in calls:
                self._advance(call.op.name, effort.op_rounds / 20)
                times = timer.time(call)
                self.report["notes"] += times.notes
                self.report["ops"] += _op_rows(times, batch, limits)
        self.tell("done", self._all, self._all)


def _op_rows(times: OpTimes, batch: int, limits: Ceilings) -> list[dict[str, Any]]:
    """A row for each candidate; `images_per_s` if a step consisted of this call's kind alone."""
    call, amount = times.call, times.call.amount
    return [
        {
            "op": call.op.name,
            "arguments": str(call),
            "batch": batch,
            "calls_per_step": call.per_step,
            "in_step": call.in_step,
            "candidate": name,
            **row,
            "ms_per_step": row["ms"] * call.per_step,
            "images_per_s": 1e3 * batch / (row["ms"] * call.per_step),
            **limits.shares(amount, row["ms"] / 1e3),
        }
        for name, row in times.rows.items()
    ]
