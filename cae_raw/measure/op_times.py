"""Single operations timed: cae-raw's beside PyTorch's, on the arguments of a training step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cae_raw.backends import NUMPY, Backend
from cae_raw.measure.calls import Call
from cae_raw.measure.clock import (
    DeviceClock,
    host_milliseconds,
    relative_error,
    summary,
    take_turns,
)
from cae_raw.measure.race import TOLERANCE, TOLERANCE_TF32
from cae_raw.measure.torch_ops import TWINS
from cae_raw.ops import scratch

COPIES_BYTES = 1 << 26  # of arguments; calls go through several copies of them in turn
MOST_COPIES = 8
WARM_UP = 2


@dataclass
class OpTimes:
    """What a call takes; `rows` by candidate, of one call: `ms`, `ms_quartiles`, `runs`."""

    call: Call
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    relative_errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class OpClock:
    """Times calls on one thread of the CPU, as a step's threads make them, or alone on a GPU.

    Use it as a context manager: on the CPU it holds BLAS and PyTorch to one thread.

    Args:
        torch: the module, or None.
        rounds: turns of each candidate; the median is taken.
        turn_ms: on the CPU a turn is as many calls as take this long.
    """

    def __init__(
        self,
        backend: Backend = NUMPY,
        torch: Any = None,
        *,
        rounds: int = 15,
        turn_ms: float = 10.0,
        clock: DeviceClock | None = None,
    ) -> None:
        self.backend, self.torch, self.clock = backend, torch, clock
        self.rounds, self.turn_ms = rounds, turn_ms
        self._stack = ExitStack()

    def __enter__(self) -> OpClock:
        if self.backend is NUMPY:
            from threadpoolctl import threadpool_limits

            self._stack.enter_context(threadpool_limits(1, user_api="blas"))
            self._stack.enter_context(scratch.reusing())
            if self.torch is not None:
                self._stack.callback(self.torch.set_num_threads, self.torch.get_num_threads())
                self.torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def time(self, call: Call) -> OpTimes:
        """Compare a call's results, then time it.

        On a GPU the results must be those of NumPy, and anywhere PyTorch's must be cae-raw's.
        """
        times = OpTimes(call)
        mine = [self.backend.to_numpy(array) for array in self._copied(call).run()]
        if self.backend is not NUMPY:
            host = call.copied(self.backend.to_numpy)
            host.function = call.op.reference
            if not self._agrees(times, call.op.name, host.run(), mine, TOLERANCE):
                return times
        works = {"cae-raw": self._rotating([self._copied(call).run for _ in self._copies(call)])}
        twin = self._twin(call)
        if twin is not None:
            theirs = [tensor.cpu().numpy() for tensor in twin()]
            tolerance = TOLERANCE if self.backend is NUMPY else TOLERANCE_TF32
            if self._agrees(times, "torch", mine[: len(theirs)], theirs, tolerance):
                makes = [self._twin(call) for _ in self._copies(call)]
                works["torch"] = self._rotating([make for make in makes if make is not None])
        for work in works.values():
            for _ in range(WARM_UP):
                work()
        milliseconds, repeats = self._milliseconds(works["cae-raw"])
        for name, found in take_turns(works, self.rounds, milliseconds).items():
            times.rows[name] = summary([ms / repeats for ms in found])
        return times

    def _milliseconds(self, work: Callable[[], Any]) -> tuple[Callable[..., float], int]:
        """A clock of several calls in a row, and how many."""
        if self.clock is not None:
            return self.clock.milliseconds, 1
        once = min(host_milliseconds(work) for _ in range(2))
        repeats = max(1, min(1000, round(self.turn_ms / max(once, 1e-3))))

        def several(work: Callable[[], Any]) -> float:
            return host_milliseconds(lambda: [work() for _ in range(repeats)] and None)

        return several, repeats

    def _agrees(
        self,
        times: OpTimes,
        name: str,
        expected: list[Any],
        actual: list[Any],
        tolerance: float,
    ) -> bool:
        error = max(map(relative_error, expected, actual), default=0.0)
        times.relative_errors[name] = error
        if error <= tolerance:
            return True
        times.notes.append(
            f"{times.call.op.name} ({times.call}): {name} differs by {error:.1e} and is not timed"
        )
        return False

    def _copied(self, call: Call) -> Call:
        return call.copied(lambda array: array.copy())

    def _copies(self, call: Call) -> range:
        return range(max(2, min(MOST_COPIES, COPIES_BYTES // max(1, call.nbytes))))

    def _rotating(self, works: list[Callable[[], Any]]) -> Callable[[], Any]:
        """Calls one after the other, so that none finds the arguments of the last in the cache."""
        turn = [0]

        def work() -> Any:
            turn[0] = (turn[0] + 1) % len(works)
            return works[turn[0]]()

        return work

    def _twin(self, call: Call) -> Callable[[], Any] | None:
        if self.torch is None or call.op.name not in TWINS:
            return None
        device = "cpu" if self.backend is NUMPY else "cuda"

        def tensor(array: Any) -> Any:
            host = np.array(self.backend.to_numpy(array))
            return self.torch.from_numpy(host).to(device)

        theirs = call.copied(tensor)
        return TWINS[call.op.name](self.torch, *theirs.args, **theirs.kwargs)
