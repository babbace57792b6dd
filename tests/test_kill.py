"""kill -9 at any moment, also in the middle of a save: resumed, a run ends with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_cases import (
    command_line,
    events_of,
    run_cli,
    run_contents,
    write_image_folder,
)

from cae_raw.errors import InputError
from cae_raw.pictures.figures import FIGURES
from cae_raw.training import checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")

KILLS = 20
PICTURES = set(FIGURES)
EPOCHS = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "pictures"
    write_image_folder(folder, n=200)
    return folder


def arguments(images: Path, runs: Path, comment: str, save_every: float) -> list[object]:
    return [
        *("train", "--dataset", "folder", "--data-dir", images, "--size", 8, "--images-every", 5),
        *("--filters", 2, "--batch-size", 4, "--device", "cpu", "--epochs", EPOCHS),
        *("--runs-dir", runs, "--comment", comment, "--save-every-seconds", save_every),
    ]


def kill_at_random(words: list[object], delay: float) -> bool:
    """Start a training, kill it so long after it began; False if it was done before that."""
    with subprocess.Popen(
        command_line(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        while line and not line.startswith("run:"):  # from here on it works on the run
            line = process.stdout.readline()
        assert line, process.stderr.read()
        time.sleep(delay)
        process.kill()
        out, errors = process.communicate(timeout=60)
    assert process.returncode in (-9, 0) and errors == ""
    done = "the run is in" in out
    assert done or process.returncode == -9
    return not done


def test_random_kills(images: Path, tmp_path: Path) -> None:
    """At least 20 kills of real processes, over as many runs as that takes."""

    def words(comment: str, save_every: float) -> list[object]:
        # Without pictures, which take so long that most kills would meet them and nothing else.
        return [*arguments(images, tmp_path, comment, save_every), "--images-every", 0]

    started = time.perf_counter()
    assert run_cli(*words("whole", 0)).returncode == 0
    took = time.perf_counter() - started
    folder = next(tmp_path.glob("*/*whole"))
    expected, events = run_contents(folder), without_pictures(folder)
    rng = np.random.default_rng(9)
    kills = runs = in_an_epoch = with_leftovers = 0
    places = set()
    while kills < KILLS:
        comment = f"killed{runs}"
        runs += 1
        run = folder.parent / folder.name.replace("whole", comment)
        while kills < KILLS:
            save_every = float(rng.choice([0.0, 0.0, 0.01]))
            delay = float(rng.uniform(0, took / 10))
            if not kill_at_random(words(comment, save_every), delay):
                break
            kills += 1
            with_leftovers += bool(list(run.glob(".*.cae-raw.tmp")))
            try:
                state = checkpoint.load(run / "last.safetensors").state
            except InputError as error:
                assert "No such file" in str(error)  # killed before the first save
                continue
            places.add(state["step"])
            in_an_epoch += state["batch"] > 0
        assert run_cli(*words(comment, 60)).returncode == 0
        assert run_contents(run) == expected
        assert without_pictures(run) == events
        assert not list(run.rglob(".*"))
    assert kills >= KILLS and len(places) >= KILLS // 2 and in_an_epoch >= 3
    print(f"{kills} kills, {runs} runs, {in_an_epoch} in an epoch, {with_leftovers} in a save")


def without_pictures(folder: Path) -> list[tuple[Any, ...]]:
    """The events of a run, less the pictures, whose headings name the run."""
    return [event for event in events_of(folder) if event[2] not in PICTURES]


POINTS = '''
"""Kill a training before each fsync and rename; print how each run, resumed, ended."""

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, sys.argv[2])
import filelock  # noqa: F401, what the children need is loaded before they are forked
import PIL.PngImagePlugin  # noqa: F401
import safetensors.numpy  # noqa: F401
import tensorboardX.proto.event_pb2  # noqa: F401
import threadpoolctl  # noqa: F401
from training_cases import Listener, events_of, make_dataset, run_contents

from cae_raw.training import saves
from cae_raw.training import session as session_module
from cae_raw.training.config import TrainConfig
from cae_raw.training.events import EventRecorder
from cae_raw.training.run_dir import RunDir
from cae_raw.training.session import RunSession

session_module.PICTURE_SECONDS = 0  # one in every epoch
EPOCHS, SAVE_EVERY, TICK = int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
ROOT = Path(sys.argv[1])
CONFIG = TrainConfig(filters=1, batch_size=20)
calls = 0
kill_at = None


def point():
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


def guarded(name):
    call = getattr(os, name)

    def wrapper(*arguments):
        point()
        return call(*arguments)

    setattr(os, name, wrapper)


def train(folder):
    ticks = itertools.count(0.0, TICK)  # epochs are saved when a second has passed by this clock
    saves.time = SimpleNamespace(monotonic=lambda: next(ticks))
    run = RunDir(folder)
    with run.locked():
        recorder = EventRecorder(run, 0)
        session = RunSession(CONFIG, make_dataset(), run, threads=1)
        session.train(EPOCHS, Listener(), SAVE_EVERY, recorder)


def in_a_child(work, *arguments):
    """How a child process that does `work` ends."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(folder, at):
    global kill_at
    kill_at = at
    for name in ("fsync", "replace"):
        guarded(name)
    train(folder)


def count(folder):
    for name in ("fsync", "replace"):
        guarded(name)
    train(folder)
    (ROOT / "points").write_text(str(calls))


assert in_a_child(count, ROOT / "whole") == 0
points = int((ROOT / "points").read_text())
expected = run_contents(ROOT / "whole"), events_of(ROOT / "whole")
assert len(expected[1]) > 40
endings = []
for at in range(1, points + 1):
    folder = ROOT / str(at)
    status = in_a_child(killed, folder, at)
    left = sorted(path.suffix for path in folder.glob(".*"))
    resumed = in_a_child(train, folder)
    same = resumed == 0 and (run_contents(folder), events_of(folder)) == expected
    same = same and not list(folder.rglob(".*"))
    endings.append([status, left, resumed, same])
print(json.dumps(endings))
'''


@pytest.mark.parametrize(
    ("epochs", "save_every", "tick", "files"),
    [
        # config, metrics; twice (2 batches, best, metrics, last, picture); 2 results and a picture
        (2, 0, 1.0, 17),
        # Epochs in memory for a while, so that `best` may be epochs ahead of `last`.
        (6, 1e9, 0.15, None),
    ],
)
def test_a_kill_at_each_call_of_a_save(
    epochs: int, save_every: float, tick: float, files: int | None, tmp_path: Path
) -> None:
    """Before each fsync and each rename of whole trainings.

    That is every state which the folder ever has, but for files that are half written.
    """
    words = (str(tmp_path), str(Path(__file__).parent), str(epochs), str(save_every), str(tick))
    result = subprocess.run(
        [sys.executable, "-c", POINTS, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    endings = json.loads(result.stdout)
    assert all(status == -9 and resumed == 0 and same for status, _, resumed, same in endings)
    # Each file has a fsync, a rename and a fsync of the folder. Event files need none, but have
    # been flushed wherever a checkpoint is saved.
    written = len(endings) // 3
    assert len(endings) == 3 * written and written == (files or written)
    assert 2 + epochs < written < 2 + 4 * epochs + 3 or files
    assert sum(left == [".tmp"] for _, left, _, _ in endings) == 2 * written
