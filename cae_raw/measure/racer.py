"""What a race asks of a candidate, in this process or in one of its own.

Rivals run in processes of their own. In one process they would not leave each other alone: JAX's
threads take processors from PyTorch's, and importing JAX alone makes PyTorch twice as fast on a
CPU, because the C library then keeps freed memory, which is one of PyTorch's modes here.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from cae_raw.measure.clock import host_milliseconds
from cae_raw.measure.ours import Candidate
from cae_raw.measure.problem import Problem

COMPARED_STEPS = 3
LEAD_IN = 0.05  # Linux moves a process that wakes up to a processor of its own after some 10 ms
CHILD = "from cae_raw.measure.racer import serve; serve()"
# Where the C library is glibc: freed memory stays with the program. Both are C ints to it.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000"}


class Racer(Protocol):
    """A candidate that is told what to do."""

    name: str

    def results(self, indices: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Loss and gradients of a batch, and the losses of the first training steps on it."""

    def warm(self, what: str, batch: int, seconds: float) -> float:
        """Work for so long, after which whoever starts processes or compiles has done so.

        Returns:
            Seconds of the fastest step.
        """

    def turn(self, what: str, batches: Sequence[np.ndarray]) -> float:
        """Milliseconds of all steps but the first, to the end of all work that they hand out.

        In a training the data of a step are where the step before left them, and its processes are
        awake; after a pause, and after the turns of others, they are not. So the first step is not
        timed, and is repeated for `LEAD_IN` seconds.
        """

    def close(self) -> None:
        """Give back what it holds."""


class Here:
    """A candidate in this process."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate, self.name = candidate, candidate.name

    def results(self, indices: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        loss, gradients = self.candidate.loss_and_gradients(indices)
        losses = []
        for _ in range(COMPARED_STEPS):
            losses.append(self.candidate.read(self.candidate.step(indices), len(indices)))
        return loss, gradients, np.array(losses)

    def warm(self, what: str, batch: int, seconds: float) -> float:
        work = partial(self.turn, what, [np.arange(batch)] * 2)  # each with its lead-in
        end, fastest = time.perf_counter() + seconds, work()
        while time.perf_counter() < end:
            fastest = min(fastest, work())
        return fastest / 1e3

    def turn(self, what: str, batches: Sequence[np.ndarray]) -> float:
        step = self.candidate.step if what == "training" else self.candidate.forward

        def work(chosen: Sequence[np.ndarray]) -> None:
            for indices in chosen:
                step(indices)
            self.candidate.wait()

        end = time.perf_counter() + LEAD_IN
        work(batches[:1])
        while time.perf_counter() < end:
            work(batches[:1])
        return host_milliseconds(partial(work, batches[1:]))

    def close(self) -> None:
        self.candidate.close()


@dataclass(frozen=True)
class Rival:
    """How another process makes a candidate.

    Args:
        library: "torch" or "jax".
        images: in the data set, which the process draws for itself.
        mode: of PyTorch, as in `torch_step`; "memory kept" in it stands for KEEP_MEMORY.
    """

    library: str
    problem: Problem
    images: int
    mode: str = ""
    on_gpu: bool = False
    threads: int | None = None

    @property
    def name(self) -> str:
        return f"{self.library} {self.mode}"

    @property
    def environment(self) -> Mapping[str, str]:
        return KEEP_MEMORY if "memory kept" in self.mode else {}

    def make(self) -> tuple[Candidate, dict[str, Any]]:
        """The candidate, and facts about its library."""
        problem, images = self.problem, self.problem.draw_images(self.images)
        if self.library == "jax":
            from cae_raw.measure import jax_step

            facts = jax_step.facts(self.on_gpu)
            return jax_step.JaxStep(
                problem.build(), images, optimizer=problem.optimizer, lr=problem.lr
            ), facts
        from cae_raw.measure import torch_step

        facts = torch_step.facts(self.on_gpu)
        return torch_step.TorchStep(
            problem.build(),
            images,
            optimizer=problem.optimizer,
            lr=problem.lr,
            mode=self.mode,
            device="cuda" if self.on_gpu else "cpu",
            threads=self.threads,
        ), facts


class Elsewhere:
    """A rival in a process of its own.

    Attributes:
        facts: about its library.

    Raises:
        RuntimeError: from any method, with the error of the other process.
    """

    def __init__(self, rival: Rival) -> None:
        self.name = rival.name
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, **rival.environment},
        )
        try:
            self.facts: dict[str, Any] = self._ask(rival)
        except BaseException:
            self.close()
            raise

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            done, answer = pickle.load(self._process.stdout)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}") from error
        if not done:
            raise RuntimeError(answer)
        return answer

    def results(self, indices: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        found: tuple[float, np.ndarray, np.ndarray] = self._ask("results", indices)
        return found

    def warm(self, what: str, batch: int, seconds: float) -> float:
        return float(self._ask("warm", what, batch, seconds))

    def turn(self, what: str, batches: Sequence[np.ndarray]) -> float:
        return float(self._ask("turn", what, list(batches)))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def serve() -> None:
    """The other process: makes a candidate, then does what it is told until nobody asks more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    requests = sys.stdin.buffer
    racer: Here | None = None
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            if racer is None:
                candidate, answer = request[0].make()
                racer = Here(candidate)
            else:
                answer = getattr(racer, request[0])(*request[1:])
            reply = (True, answer)
        except Exception as error:  # whatever a rival cannot do on this machine
            lines = str(error).strip().splitlines() or [""]
            reply = (False, f"{type(error).__name__}: {lines[0][:200]}")
        pickle.dump(reply, answers)
        answers.flush()
