"""Who works on a step: threads of this process at first, other processes where the work is long.

Processes are faster than threads (see `threads`), but take a fifth of a second to start. They are
started when the stages have taken so long already that this will pay, and take over when they are
there. The bits of the results are the same either way.
"""

from __future__ import annotations

import time
from typing import Any

from cae_raw.layers import Layer
from cae_raw.models import Autoencoder
from cae_raw.training.cpu_step import CpuStep, Problem
from cae_raw.training.shared_memory import private_arrays
from cae_raw.training.threads import Threads
from cae_raw.training.workers import NoWorkers, Workers, supported

Array = Any

PATIENCE = 0.5  # seconds of work for several threads, before processes are started


class Crew:
    """Runs the stages of one kind of step.

    Args:
        kind, problem: of the step.
        threads: how many shall work at a time, this one included.
    """

    def __init__(self, kind: type[CpuStep], problem: Problem, threads: int) -> None:
        self.kind, self.problem = kind, problem
        self.threads = Threads(threads)
        self.workers: Workers | None = None
        self.step = kind(problem, private_arrays(kind.layout(problem)))
        self._hopeful = threads > 1 and supported() and _can_travel(problem.model)
        self._worked, self._widest = 0.0, 1  # seconds; numbers in the longest stage
        self._home: Array = None  # where the parameters were before they were shared

    def begin(self) -> CpuStep:
        """The step to use for the next batch; call it before each."""
        try:
            if self.workers is None and self._hopeful and self._has_much_to_do:
                self._start_workers()
            elif self.workers is not None and self.workers.open:
                if not self.by_processes and self.workers.ready():
                    self.step = self._shared_step
                if self.by_processes:
                    self._share_parameters()
        except NoWorkers:
            self._hopeful = False
        return self.step

    @property
    def _has_much_to_do(self) -> bool:
        return self._widest > 1 and self._worked >= PATIENCE

    @property
    def shared_gradients(self) -> Array | None:
        """Where processes write the gradients to; None where there are none."""
        return None if self.workers is None else self.workers.arrays["gradients"]

    @property
    def by_processes(self) -> bool:
        """Whether stages are run by processes now."""
        return self.workers is not None and self.workers.open and self.step is self._shared_step

    def run(self, stage: str, count: int, own: str = "") -> None:
        """Run a stage of the step that `begin` returned; see `cpu_step.Run`."""
        if self.by_processes:
            assert self.workers is not None
            self.workers.run(stage, count, own)
            return
        started = time.perf_counter()
        self.threads.each(getattr(self.step, stage), count)
        if count > 1:
            self._worked += time.perf_counter() - started
            self._widest = max(self._widest, count)

    def close(self) -> None:
        """End threads and processes; the parameters are where they were at the beginning."""
        self.threads.close()
        if self.workers is not None:
            self.workers.close()
            if self.problem.model.parameters is self.workers.arrays["parameters"]:
                self.problem.model.move_parameters(self._home)

    def _start_workers(self) -> None:
        model, layout = self.problem.model, self.kind.layout(self.problem)
        layout["parameters"] = (model.parameters.shape, model.parameters.dtype)
        self.workers = Workers(layout, min(self.threads.count, self._widest) - 1)
        self._home = model.parameters
        self._share_parameters()
        self._shared_step = self.kind(self.problem, self.workers.arrays)
        self.workers.start(self._shared_step)

    def _share_parameters(self) -> None:
        """Hold the model's parameters where the workers look for them."""
        assert self.workers is not None
        model, shared = self.problem.model, self.workers.arrays["parameters"]
        if model.parameters is not shared:
            model.move_parameters(shared)


def _can_travel(model: Autoencoder) -> bool:
    """Whether another process can have the same model.

    Layers of other authors might not be found there, or count on being called in this process.
    """
    return type(model) is Autoencoder and all(
        type(layer).__module__.startswith(f"{Layer.__module__.partition('.')[0]}.")
        for layer in model.stack
    )
