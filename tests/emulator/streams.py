"""Emulated streams, events and graphs: what is done at once, what later, and what is recorded.

Work is usually done when it is handed over. Inside `deferred()` it waits, in the order in which it
was handed over, until the host waits for it: what a GPU may do at the latest. Between a stream's
`begin_capture` and `end_capture` it becomes part of a graph, and is done when that is launched.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from .compile import EmulatorError

Work = Callable[[], Any]


class CUDARuntimeError(RuntimeError):
    """Stands for cupy.cuda.runtime.CUDARuntimeError."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Stream:
    """Streams share one queue, so that none overtakes another."""

    null: Stream
    _stack: ClassVar[list[Stream]] = []

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: Any = None,
    ) -> None:
        self.ptr = 0 if null else id(self)
        self.non_blocking = non_blocking
        self.done = True
        self._recorded: list[Work] | None = None  # while it captures
        self._invalid = False

    def __enter__(self) -> Stream:
        Stream._stack.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        Stream._stack.pop()

    def use(self) -> Stream:
        Stream._stack[-1:] = [self]
        return self

    def synchronize(self) -> None:
        drain(stream=self)

    def record(self, event: Any = None) -> Any:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        pass

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the default stream")
        if self._recorded is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self._recorded, self._invalid = [], False

    def end_capture(self) -> Graph:
        if self._recorded is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        recorded, self._recorded = self._recorded, None
        if self._invalid:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        return Graph(recorded)

    def is_capturing(self) -> bool:
        return self._recorded is not None


Stream.null = Stream(null=True)


def current_stream() -> Stream:
    return Stream._stack[-1] if Stream._stack else Stream.null


class Event:
    """Times on the host's clock."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.time = 0.0
        self.done = True

    def record(self, stream: Any = None) -> None:
        self.done = False
        do(self._reach, stream)

    def _reach(self) -> None:
        self.time, self.done = time.perf_counter(), True

    def synchronize(self) -> None:
        drain(self)


class Graph:
    """What a stream recorded."""

    def __init__(self, recorded: list[Work]) -> None:
        self.recorded = recorded
        self.launches = 0

    def launch(self, stream: Stream | None = None) -> None:
        self.launches += 1
        for work in self.recorded:
            do(work, stream)

    def upload(self, stream: Stream | None = None) -> None:
        pass


_waiting: deque[Work] = deque()
_deferring = [False]


def do(work: Work, stream: Stream | None = None) -> None:
    """Hand work to a stream, by default the current one."""
    stream = stream or current_stream()
    if stream._recorded is not None:
        stream._recorded.append(work)
    elif _deferring[0]:
        _waiting.append(work)
    else:
        work()


def drain(event: Event | None = None, stream: Stream | None = None) -> None:
    """Do what waits, all of it or until an event is reached."""
    stream = stream or current_stream()
    if stream._recorded is not None:
        stream._invalid = True
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the host waits for a recording")
    while _waiting and (event is None or not event.done):
        _waiting.popleft()()


def refuse_while_capturing(what: str) -> None:
    """For what CUDA or CuPy would record as something that nobody means."""
    if current_stream()._recorded is not None:
        current_stream()._invalid = True
        raise EmulatorError(f"{what} while a graph is recorded")


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """For a while, work waits as long as the host does not wait for it."""
    _deferring[0] = True
    try:
        yield
        drain()
    finally:
        _deferring[0] = False
        _waiting.clear()
