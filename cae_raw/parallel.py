"""Parts of the work one beside the other: on a CPU's threads, or one after the other on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

from cae_raw.backends import NUMPY, Backend
from cae_raw.training.engine import available_threads
from cae_raw.training.threads import Threads

T = TypeVar("T")


class Parallel:
    """A context manager that owns threads on the CPU.

    While it is open, the BLAS behind NumPy is held to one thread per worker, so that results have
    the same bits for any number of threads.

    Args:
        backend: that does the work.
        threads: workers on the CPU; None takes every processor this process may use.
    """

    def __init__(self, backend: Backend, threads: int | None = None) -> None:
        self.on_cpu = backend is NUMPY
        self.threads = (threads or available_threads()) if self.on_cpu else 1
        self._work: Threads | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Parallel:
        if self.on_cpu:
            from threadpoolctl import threadpool_limits

            self._stack.enter_context(threadpool_limits(1, user_api="blas"))
            self._work = Threads(self.threads)
            self._stack.callback(self._work.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._work = None

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """`map`; on the CPU, while this is open, on all threads. Results come in order."""
        return self._work.in_order(function, items) if self._work else map(function, items)
