"""Things to run in worker processes; they import this module by its name."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

NUMBERS = 24
LAYOUT = {"pids": ((NUMBERS,), "int64"), "values": ((NUMBERS,), "int64"), "far": ((3,), "float64")}


class Refusal(Exception):
    """Cannot be made again of its arguments, so it cannot be sent."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Toy:
    """Stages that note who ran them."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.arrays, self.parent = arrays, os.getpid()
        self.kept: dict[int, int] = {}

    @property
    def in_worker(self) -> bool:
        return os.getpid() != self.parent

    def note(self, k: int) -> None:
        time.sleep(0.004)  # so that everybody gets some
        self.arrays["pids"][k] = os.getpid()
        self.arrays["values"][k] += 1
        self.kept[k] = k * k

    def look(self, k: int) -> None:
        """Needs what `note` kept in this process."""
        self.arrays["values"][k] = self.kept.pop(k)
        self.arrays["pids"][k] -= os.getpid()

    def fail_in_worker(self, k: int) -> None:
        self.note(k)
        if self.in_worker:
            raise ZeroDivisionError(f"at {k}")

    def fail_here(self, k: int) -> None:
        self.note(k)
        if not self.in_worker:
            raise ZeroDivisionError(f"at {k}")

    def interrupted_here(self, k: int) -> None:
        self.note(k)
        if not self.in_worker:
            raise KeyboardInterrupt

    def refuse(self, k: int) -> None:
        self.note(k)
        if self.in_worker:
            raise Refusal(k, k)

    def die(self, k: int) -> None:
        self.note(k)
        if self.in_worker:
            os.kill(os.getpid(), signal.SIGKILL)

    def signalled(self, k: int) -> None:
        """Ignores what a terminal or a service manager sends to everybody."""
        if self.in_worker:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        self.note(k)

    def blas_threads(self, k: int) -> None:
        from threadpoolctl import threadpool_info

        self.note(k)
        found = [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
        self.arrays["values"][k] = max(found)

    def overflow(self, k: int) -> None:
        self.note(k)
        self.arrays["far"][...] = 1e308
        self.arrays["far"] *= 10


class CannotArrive:
    """Fails in the process that it is sent to."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    def __reduce__(self) -> Any:
        return os.listdir, ("/does/not/exist",)
