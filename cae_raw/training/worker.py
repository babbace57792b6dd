"""A worker process: runs stages of a training step beside the process that started it.

It gets an object over a pipe, and then names of stages, methods of that object. For each it takes
numbers from a pipe that all processes share until that is empty, calls the method with each, and
answers. It ends when the process that started it closes the pipe or is no more, however that came
about; no signal that a terminal or a service manager sends to a whole group ends it before.
"""

from __future__ import annotations

import os
import pickle
import signal
from contextlib import suppress
from typing import Any

import numpy as np

from cae_raw.ops import scratch
from cae_raw.training.shared_memory import SharedMemory

NUMBER = 4  # bytes of a number in the pipe


class Member:
    """One process's part in running stages.

    Args:
        step: what the stages are methods of.
        numbers: the pipe to take numbers from; reading it does not wait.
    """

    def __init__(self, step: Any, numbers: int) -> None:
        self.step, self.numbers = step, numbers
        self._stock: scratch.Stock = {}
        self._had: dict[str, list[int]] = {}

    def run(self, stage: str, own: str = "") -> Exception | None:
        """Run a stage for numbers from the pipe, or those that this process had in stage `own`.

        Returns the exception, if there was one; nobody gets a further number then.
        """
        call, had = getattr(self.step, stage), self._had.setdefault(stage, [])
        had.clear()
        # Numbers that overflow are no warning: whoever gets the result looks at it.
        with scratch.reusing(self._stock), np.errstate(over="ignore", invalid="ignore"):
            try:
                if own:
                    for number in self._had[own]:
                        call(number)
                    return None
                while (taken := self._take()) is not None:
                    had.append(taken)
                    call(taken)
            except Exception as error:
                while self._take() is not None:
                    pass
                return error
        return None

    def _take(self) -> int | None:
        try:
            found = os.read(self.numbers, NUMBER)
        except BlockingIOError:
            return None
        return int.from_bytes(found, "little") if found else None


def main(file: int, size: int, numbers: int, commands: int, answers: int) -> None:
    """Work until `commands` ends.

    Args:
        file, size: of the shared memory.
        numbers, commands, answers: pipes.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    memory = SharedMemory(file, size)
    os.close(file)
    with open(commands, "rb") as lines, open(answers, "wb", buffering=0) as out:
        try:
            member = Member(memory.loads(lines.read(int(lines.readline()))), numbers)
            out.write(answer(None))
            for line in lines:
                stage, _, own = line.decode().strip().partition(" ")
                out.write(answer(member.run(stage, own)))
        except BrokenPipeError:  # nobody is there to read it
            pass
        except Exception as error:
            with suppress(BrokenPipeError):
                out.write(answer(error))
        finally:
            os._exit(0)  # there is nothing to tidy up, and this takes no time


def answer(error: Exception | None) -> bytes:
    """What tells the starting process how it went: None, or the exception to raise there."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__} in a worker process: {error}"))
    return data
