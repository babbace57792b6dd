"""Worker processes: every number once, errors and deaths told, nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_cases import LAYOUT, NUMBERS, CannotArrive, Toy

from cae_raw.errors import InputError
from cae_raw.training.shared_memory import SharedMemory, open_file, private_arrays, size_of
from cae_raw.training.workers import NoWorkers, Workers, supported

pytestmark = pytest.mark.skipif(not supported(), reason="needs memory files")

OTHERS = 2


def wait_until_ready(workers: Workers) -> None:
    deadline = time.monotonic() + 60
    while not workers.ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def toy() -> Iterator[tuple[Workers, Toy]]:
    workers = Workers(LAYOUT, OTHERS)
    toy = Toy(workers.arrays)
    workers.start(toy)
    wait_until_ready(workers)
    yield workers, toy
    workers.close()


def pids_of(workers: Workers) -> list[int]:
    return [worker.process.pid for worker in workers._workers]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- stages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, NUMBERS])
def test_every_number_goes_to_one_process(toy: tuple[Workers, Toy], count: int) -> None:
    workers, _ = toy
    for _ in range(3):
        workers.run("note", count)
    values = workers.arrays["values"]
    assert (values[:count] == 3).all() and not values[count:].any()
    if count == NUMBERS:
        assert set(workers.arrays["pids"]) == {os.getpid(), *pids_of(workers)}


def test_own_numbers_come_back_to_the_process_that_kept_something(toy: tuple[Workers, Toy]) -> None:
    workers, _ = toy
    for count in (NUMBERS, 5, 1, NUMBERS):
        workers.run("note", count)
        workers.run("look", count, own="note")
        np.testing.assert_array_equal(workers.arrays["values"][:count], np.arange(count) ** 2)
        assert not workers.arrays["pids"][:count].any()


@pytest.mark.parametrize("stage", ["fail_in_worker", "fail_here"])
def test_an_exception_is_raised_here_and_work_goes_on(toy: tuple[Workers, Toy], stage: str) -> None:
    workers, _ = toy
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="at "):
            workers.run(stage, NUMBERS)
        assert workers.arrays["values"].sum() < NUMBERS  # the others took no more either
        workers.arrays["values"][...] = 0
        workers.run("note", NUMBERS)  # nobody runs the other stage any more, no number is left
        assert (workers.arrays["values"] == 1).all()
        workers.arrays["values"][...] = 0


def test_an_exception_that_cannot_be_sent_is_told(toy: tuple[Workers, Toy]) -> None:
    with pytest.raises(RuntimeError, match=r"Refusal in a worker process: (\d+) and \1"):
        toy[0].run("refuse", NUMBERS)


def test_workers_ignore_what_ends_the_whole_group(toy: tuple[Workers, Toy]) -> None:
    workers, _ = toy
    workers.run("signalled", NUMBERS)
    assert len(set(workers.arrays["pids"])) == 1 + OTHERS


def test_overflow_is_no_warning(toy: tuple[Workers, Toy]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy[0].run("overflow", NUMBERS)
    assert np.isinf(toy[0].arrays["far"]).all()


def test_blas_has_one_thread_in_a_worker(toy: tuple[Workers, Toy]) -> None:
    workers, _ = toy
    workers.run("blas_threads", NUMBERS)
    in_workers = workers.arrays["pids"] != os.getpid()
    assert in_workers.any()
    assert set(workers.arrays["values"][in_workers]) == {1}


# --- ends -------------------------------------------------------------------------------------


def test_a_death_in_a_stage_is_one_line_and_no_hang(toy: tuple[Workers, Toy]) -> None:
    workers, _ = toy
    pids = pids_of(workers)
    with pytest.raises(InputError, match=r"a worker process was killed by signal 9.*--threads$"):
        workers.run("die", NUMBERS)
    assert not workers.open
    assert not any(map(is_running, pids))


@pytest.mark.parametrize("which", range(OTHERS))
def test_a_death_between_stages(toy: tuple[Workers, Toy], which: int) -> None:
    workers, _ = toy
    pids = pids_of(workers)
    workers.run("note", NUMBERS)
    os.kill(pids[which], signal.SIGKILL)
    with pytest.raises(InputError, match="killed by signal 9") as caught:
        for _ in range(3):  # the first may be quicker than the signal
            workers.run("note", NUMBERS)
    assert "\n" not in str(caught.value)
    assert not workers.open and not any(map(is_running, pids))


def test_an_interrupt_ends_them(toy: tuple[Workers, Toy]) -> None:
    workers, _ = toy
    pids = pids_of(workers)
    with pytest.raises(KeyboardInterrupt):
        workers.run("interrupted_here", NUMBERS)
    assert not workers.open and not any(map(is_running, pids))


def test_closing_leaves_nothing_behind() -> None:
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    workers = Workers(LAYOUT, OTHERS)
    workers.start(Toy(workers.arrays))
    pids = pids_of(workers)
    assert all(map(is_running, pids))
    wait_until_ready(workers)
    workers.run("note", NUMBERS)
    arrays = workers.arrays
    workers.close()
    workers.close()
    assert not any(map(is_running, pids))
    assert (arrays["values"] == 1).all()  # still there for whoever refers to them
    del workers, arrays
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_closing_while_they_start() -> None:
    workers = Workers(LAYOUT, OTHERS)
    workers.start(Toy(workers.arrays))
    pids = pids_of(workers)
    workers.close()
    assert not any(map(is_running, pids))


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_workers import LAYOUT, NUMBERS, OTHERS, pids_of, wait_until_ready
from worker_cases import Toy
from cae_raw.training.workers import Workers
workers = Workers(LAYOUT, OTHERS)
workers.start(Toy(workers.arrays))
wait_until_ready(workers)
print(*pids_of(workers), flush=True)
while True:
    workers.run("note", NUMBERS)
    if sys.argv[2] == "idle":
        time.sleep(60)
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_killed_parent_leaves_no_worker(state: str) -> None:
    words = [sys.executable, "-c", PARENT, str(Path(__file__).parent), state]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == OTHERS and all(map(is_running, pids))
        time.sleep(0.1)
        parent.kill()
        _, errors = parent.communicate(timeout=60)
    assert errors == b""
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- starts -----------------------------------------------------------------------------------


def test_what_cannot_be_sent() -> None:
    workers = Workers(LAYOUT, OTHERS)
    toy = Toy(workers.arrays)
    toy.kept = {0: lambda: 0}  # type: ignore[dict-item]
    with pytest.raises(NoWorkers):
        workers.start(toy)
    assert not workers.open


def test_what_cannot_arrive(capfd: pytest.CaptureFixture[str]) -> None:
    workers = Workers(LAYOUT, OTHERS)
    workers.start(CannotArrive(workers.arrays))
    with pytest.raises(NoWorkers, match="/does/not/exist"):
        wait_until_ready(workers)
    assert not workers.open
    assert capfd.readouterr().err == ""


def test_a_program_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    workers = Workers(LAYOUT, OTHERS)
    with pytest.raises(NoWorkers):
        workers.start(Toy(workers.arrays))


def test_no_memory_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError("no more files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(NoWorkers, match="no more files"):
        Workers(LAYOUT, OTHERS)


# --- shared memory ----------------------------------------------------------------------------


def test_arrays_in_the_memory_are_sent_as_their_place() -> None:
    layout = {
        "a": ((3, 5), "float32"),
        "b": ((), "int64"),
        "c": ((0, 2), "uint8"),
        "d": ((7,), "f8"),
    }
    size = size_of(layout)
    file = open_file(size)
    mine, theirs = SharedMemory(file, size), SharedMemory(file, size)
    os.close(file)
    arrays = mine.arrays(layout)
    assert {k: (v.shape, v.dtype) for k, v in arrays.items()} == {
        k: (v.shape, v.dtype) for k, v in private_arrays(layout).items()
    }
    assert not any(array.any() for array in arrays.values())
    elsewhere = np.arange(4)
    sent = {**arrays, "row": arrays["a"][1], "column": arrays["a"][:, 1], "elsewhere": elsewhere}
    got = theirs.loads(mine.dumps(sent))
    for k, name in enumerate("abd"):
        arrays[name][...] = k + 1
        assert (got[name] == k + 1).all() and got[name].shape == arrays[name].shape
    got["row"][...] = 9
    assert (arrays["a"][1] == 9).all() and (arrays["a"][0] == 1).all()
    assert not got["column"].any()  # not in one piece: sent by value, as it was
    elsewhere[...] = 5
    np.testing.assert_array_equal(got["elsewhere"], np.arange(4))


def test_memory_that_is_not_written_to_takes_none() -> None:
    layout = {"large": ((1 << 33,), "uint8"), "small": ((8,), "uint8")}
    size = size_of(layout)
    file = open_file(size)
    try:
        SharedMemory(file, size).arrays(layout)["small"][...] = 1
        assert os.fstat(file).st_blocks * 512 <= 1 << 16
    finally:
        os.close(file)
