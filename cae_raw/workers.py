"""Threads for the CPU: what runs a function over parts of the work, with results in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np

from cae_raw.backends import NUMPY, Backend
from cae_raw.ops import scratch
from cae_raw.training.engine import available_threads

T = TypeVar("T")


class Workers:
    """A context manager that owns threads on the CPU; on a GPU the parts follow one another.

    While it is open, the BLAS behind NumPy is held to one thread per worker, so that results have
    the same bits for any number of threads.

    Args:
        backend: that does the work.
        threads: workers on the CPU; None takes every processor this process may use.
    """

    def __init__(self, backend: Backend, threads: int | None = None) -> None:
        self.on_cpu = backend is NUMPY
        self.threads = (threads or available_threads()) if self.on_cpu else 1
        self._pool: ThreadPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Workers:
        if self.on_cpu:
            from threadpoolctl import threadpool_limits

            self._stack.enter_context(threadpool_limits(1, user_api="blas"))
            self._pool = self._stack.enter_context(
                ThreadPoolExecutor(self.threads, initializer=scratch.reuse_in_this_thread)
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._pool = None

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """`map`; on the CPU, while this is open, on all threads. Results come in order.

        NumPy does not warn of numbers that overflow: whoever gets the results looks at them.
        """

        def quietly(item: Any) -> T:
            with np.errstate(over="ignore", invalid="ignore"):
                return function(item)

        return (self._pool.map if self._pool else map)(quietly, items)
