"""Work spread over threads of this process.

NumPy releases the interpreter's lock while it computes, so threads do run at the same time; but
they meet at the lock between any two calls of NumPy, which is why `workers` does better.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from cae_raw.ops import scratch

T = TypeVar("T")


class Threads:
    """This thread and a few others, which are started when there is work for them.

    Args:
        count: of all of them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._stock: scratch.Stock = {}  # of the thread that calls
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """End the threads and give back their memory; work after that starts new ones."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._stock = None, {}

    def each(self, function: Callable[[int], object], count: int) -> None:
        """Call `function` with each number below `count`; returns when all calls are over.

        If one fails, no further number is taken, and its exception is raised when nobody is
        inside the function any more.
        """
        numbers = deque(range(count))

        def take_part() -> None:
            # Numbers that overflow are no warning: whoever gets the result looks at it.
            with np.errstate(over="ignore", invalid="ignore"):
                try:
                    for number in _until_empty(numbers):
                        function(number)
                except BaseException:
                    numbers.clear()
                    raise

        others = []
        if min(self.count, count) > 1:
            self._pool = self._pool or ThreadPoolExecutor(
                self.count - 1, initializer=scratch.reuse_in_this_thread
            )
            others = [self._pool.submit(take_part) for _ in range(min(self.count, count) - 1)]
        try:
            with scratch.reusing(self._stock):
                take_part()
        finally:
            wait(others)
        for other in others:
            other.result()

    def in_order(self, function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        """`map` with several calls at a time; results in the order of the items."""
        given = list(items)
        results: list[Any] = [None] * len(given)

        def call(k: int) -> None:
            results[k] = function(given[k])

        self.each(call, len(given))
        return iter(results)


def _until_empty(numbers: deque[int]) -> Iterator[int]:
    """Takes them from the left; others may do so at the same time."""
    while numbers:
        try:
            yield numbers.popleft()
        except IndexError:
            return
