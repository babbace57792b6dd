"""Work spread over processes, which no interpreter's lock makes wait for each other.

    this process                                        worker 1, 2, ... (see `worker`)

    shared memory   parameters, batch, gradients  <-->  the same
    numbers         4 bytes each  ------------------->  whoever is free takes the next
    commands        "encode\\n"  --------------------->  one pipe for each
    answers         <---------------------------------  one pipe for each: done, or an exception

A stage is run by writing its numbers and then its name; this process takes part in the work like
the others, then reads the answers. A pipe's end means that the process at the other end is gone: a
worker leaves then, and this process raises an error. Workers are started as new processes of the
interpreter, for a copy of this one would inherit locks that its threads hold, and as processes of
another group, so that Ctrl-C reaches this one alone.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, Any

from cae_raw.errors import InputError
from cae_raw.training.shared_memory import Layout, SharedMemory, open_file, size_of
from cae_raw.training.worker import NUMBER, Member

# A worker looks for modules where this process does.
PROGRAM = (
    "import sys; arguments = map(int, sys.argv[1:6]); sys.path[:] = sys.argv[6:]; "
    "from cae_raw.training.worker import main; main(*arguments)"
)
ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS"), "1"
)


def supported() -> bool:
    """Whether this system and this interpreter can have workers."""
    return sys.platform == "linux" and hasattr(os, "memfd_create") and bool(sys.executable)


class NoWorkers(Exception):
    """They could not be started; whoever wanted them does without."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    commands: int
    answers: IO[bytes]


class Workers:
    """This process and others, for the stages of one object.

    Args:
        layout: of the arrays in the memory that they share.
        count: of the other processes.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        self.count, self._size = count, size_of(layout)
        self._workers: list[_Worker] = []
        self._waiting_for: list[_Worker] = []
        self._files = ExitStack()
        self.open = True
        try:
            self._file = self._own(open_file(self._size))
            self._numbers, self._numbers_in = map(self._own, os.pipe())
            os.set_blocking(self._numbers, False)  # for all who read it
            self._memory = SharedMemory(self._file, self._size)
            self.arrays = self._memory.arrays(layout)
        except OSError as error:
            self.close()
            raise NoWorkers(str(error)) from error

    def _own(self, fd: int) -> int:
        self._files.callback(os.close, fd)
        return fd

    def start(self, step: Any) -> None:
        """Start them for an object over `arrays`; they are of use when they are `ready`.

        Raises:
            NoWorkers: if the object cannot be sent, or processes cannot be started.
        """
        try:
            sent = self._memory.dumps(step)
            for _ in range(self.count):
                self._workers.append(self._start())
            for worker in self._workers:
                _write(worker.commands, b"%d\n" % len(sent) + sent)
        except Exception as error:
            self.close()
            raise NoWorkers(str(error)) from error
        self._waiting_for = list(self._workers)
        self._member = Member(step, self._numbers)

    def _start(self) -> _Worker:
        their_commands, our_commands = os.pipe()
        our_answers, their_answers = os.pipe()
        theirs = (self._numbers, their_commands, their_answers)
        self._files.callback(os.close, our_commands)
        answers = open(our_answers, "rb")  # noqa: SIM115
        self._files.callback(answers.close)
        given = map(str, (self._file, self._size, *theirs))
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *given, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._file, *theirs),
                start_new_session=True,
                env={**os.environ, **ONE_THREAD},
            )
        finally:
            os.close(their_commands)
            os.close(their_answers)
        return _Worker(process, our_commands, answers)

    def ready(self) -> bool:
        """Whether all have started.

        Raises:
            NoWorkers: if one could not.
        """
        poll = select.poll()
        for worker in self._waiting_for:
            poll.register(worker.answers, select.POLLIN)
        there = {fd for fd, _ in poll.poll(0)}
        for worker in [w for w in self._waiting_for if w.answers.fileno() in there]:
            try:
                error = self._answer(worker)
            except InputError as died:
                error = died
            if error is not None:
                self.close()
                raise NoWorkers(str(error)) from error
            self._waiting_for.remove(worker)
        return not self._waiting_for

    def run(self, stage: str, count: int, own: str = "") -> None:
        """Run a stage for every number below `count`; returns when all processes are done.

        With `own`, each runs it for the numbers which it had in the stage of that name. An
        exception in any of them is raised here, when nobody is inside the stage any more.

        Raises:
            InputError: if a worker is gone; no stage can be run after that.
        """
        try:
            if not own:
                os.write(
                    self._numbers_in, b"".join(k.to_bytes(NUMBER, "little") for k in range(count))
                )
            for worker in self._workers:
                try:
                    _write(worker.commands, f"{stage} {own}\n".encode())
                except BrokenPipeError:
                    raise self._gone(worker) from None
            errors = [self._member.run(stage, own)]
            errors += [self._answer(worker) for worker in self._workers]
        except BaseException:  # some may still be at work: they are of no further use
            self.close()
            raise
        for error in errors:
            if error is not None:
                raise error

    def _answer(self, worker: _Worker) -> Exception | None:
        try:
            error: Exception | None = pickle.load(worker.answers)
        except (EOFError, pickle.UnpicklingError):
            raise self._gone(worker) from None
        return error

    def _gone(self, worker: _Worker) -> InputError:
        status = worker.process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return InputError(
            f"a worker process {how}, perhaps for want of memory: try fewer --threads"
        )

    def close(self) -> None:
        """End the workers. The arrays stay as they are for whoever still refers to them."""
        self.open = False
        for worker in self._workers:
            worker.process.kill()  # it holds nothing that could be left half done
        for worker in self._workers:
            with suppress(OSError):
                worker.process.wait()
        self._workers.clear()
        self._files.close()


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
