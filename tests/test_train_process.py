"""`cae-raw train` as a process of its own: signals, a full disk, restarts."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_cases import command_line, run_cli, run_contents, write_image_folder

from cae_raw.training import checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "pictures"
    write_image_folder(folder)
    return folder


def arguments(images: Path, runs: Path, epochs: int) -> list[object]:
    return [
        *("train", "--dataset", "folder", "--data-dir", images, "--size", 8),
        *("--filters", 2, "--batch-size", 4, "--device", "cpu"),
        *("--runs-dir", runs, "--epochs", epochs),
    ]


def only_run(runs: Path) -> Path:
    (path,) = runs.glob("single-layer/*")
    return path


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_signals_to_a_real_process(images: Path, tmp_path: Path) -> None:
    """Ctrl-C, then SIGTERM: exit status, the line that resumes, and that the line does."""
    words = command_line(*arguments(images, tmp_path / "runs", 400), "--restart")
    stops = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            line = ""
            while not line.startswith("epoch"):
                line = process.stdout.readline()
                assert line, process.stderr.read()
            process.send_signal(number)
            out, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert errors == ""
        told, command = out.splitlines()[-2:]
        assert told.endswith("everything is saved. To go on:")
        program, *rest = shlex.split(command)
        assert program == "cae-raw" and "--restart" not in rest
        words = command_line(*rest)
        stops += 1
    assert stops == 2
    state = checkpoint.load(only_run(tmp_path / "runs") / "last.safetensors").state
    assert 0 < state["epoch"] < 400
    epochs = state["epoch"] + 2
    words[words.index("--epochs") + 1] = str(epochs)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert f"resuming after {state['epoch']} epoch" in done.stdout
    assert run_cli(*arguments(images, tmp_path / "never", epochs)).returncode == 0
    assert run_contents(only_run(tmp_path / "runs")) == run_contents(only_run(tmp_path / "never"))


LIMITED = """
import resource, sys
from cae_raw.app import main

size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="limits are POSIX")
def test_a_full_disk_ends_in_one_line(images: Path, tmp_path: Path) -> None:
    command, *rest = arguments(images, tmp_path, 1)
    words = [command, "--no-tensorboard", *rest]  # so that a checkpoint is the first to be cut
    assert run_cli(*words).returncode == 0
    run = only_run(tmp_path)
    names = ("last.safetensors", "best.safetensors")
    before = {name: (run / name).read_bytes() for name in names}
    # As on a full disk, the system ends a write in its middle; small files still fit.
    size = min(map(len, before.values())) - 100
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *map(str, words[:-1]), "3"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("cae-raw: error: cannot write ")
    assert result.stderr.endswith(".safetensors: File too large\n")
    assert result.stderr.count("\n") == 1
    assert {name: (run / name).read_bytes() for name in names} == before
    assert not list(run.glob(".*"))
    assert run_cli(*words[:-1], 3).returncode == 0  # with room again, it goes on


def test_restart_and_finished(images: Path, tmp_path: Path) -> None:
    words = arguments(images, tmp_path, 2)
    assert run_cli(*words).returncode == 0
    run = only_run(tmp_path)
    first = run_contents(run)
    (run / "notes.txt").write_text("mine")
    again = run_cli(*words)
    assert again.returncode == 0
    assert "this run has finished 2 epochs" in again.stdout
    assert "a larger --epochs trains on" in again.stdout
    assert run_contents(run) == first
    last = run / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    damaged = run_cli(*words)
    assert damaged.returncode == 2 and damaged.stderr.count("\n") == 1
    assert "last.safetensors is damaged" in damaged.stderr and "--restart" in damaged.stderr
    # A restart that cannot begin deletes nothing.
    images_gone = [images.parent / "gone" if word is images else word for word in words]
    assert run_cli(*images_gone, "--restart").returncode == 2
    assert (run / "best.safetensors").exists()
    restarted = run_cli(*words, "--restart")
    assert restarted.returncode == 0 and "resuming" not in restarted.stdout
    assert run_contents(run) == first
    assert (run / "notes.txt").read_text() == "mine"
