"""A run's folder: names, the lock, what is deleted, which run is the newest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_cases import run_cli

from cae_raw.errors import InputError
from cae_raw.figures import Figures
from cae_raw.training.loading import find_run, load_checkpoint
from cae_raw.training.run_dir import RunDir, newest_run
from cae_raw.training.trainer import EpochRecord

HOLDER = """
import sys
from pathlib import Path
from cae_raw.training.run_dir import RunDir

with RunDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process that holds the run `a/b`."""
    path = tmp_path / "a" / "b"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield path, process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_second_process_is_kept_out_until_the_first_is_gone(
    holder: tuple[Path, subprocess.Popen[str]],
) -> None:
    path, process = holder
    for _ in range(2):
        with pytest.raises(InputError, match="is in use by another process") as caught:
            RunDir(path).locked().__enter__()
    assert "\n" not in str(caught.value)
    with RunDir(path.parent / "c").locked():
        pass  # other runs are free
    process.kill()
    process.wait()
    with RunDir(path).locked():
        pass


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a")
    for _ in range(2):
        with run.locked(), pytest.raises(InputError, match="in use"):
            RunDir(tmp_path / "a").locked().__enter__()
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    with run.locked():
        pass


def test_train_refuses_a_run_in_use(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "single-layer" / "shapes_adam_lr=0.001_b=128"
    with RunDir(path).locked():
        for more in ([], ["--restart"]):
            result = run_cli("train", "--runs-dir", tmp_path / "runs", "--device", "cpu", *more)
            assert result.returncode == 2
            assert result.stdout == ""
            assert result.stderr.startswith(f"cae-raw: error: {path} is in use")
            assert result.stderr.count("\n") == 1
    assert os.listdir(path) == ["lock"]


@pytest.mark.parametrize("place", ["file/a", "n" * 300, "a/" + "n" * 300])
def test_impossible_places_are_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to") as caught:
        RunDir(tmp_path / place).locked().__enter__()
    assert "\n" not in str(caught.value)


def test_a_comment_too_long_for_a_file_name_is_one_line(tmp_path: Path) -> None:
    result = run_cli("train", "--runs-dir", tmp_path, "--comment", "c" * 300, "--device", "cpu")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "name is longer than" in result.stderr
    assert list(tmp_path.glob("*/*")) == []


def test_clear_deletes_what_a_training_wrote_only(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a")
    (run.path / "sub").mkdir(parents=True)
    (run.path / "train").mkdir()
    mine = [
        "notes.txt",
        "train/notes.txt",
        "sub/last.safetensors",
        "my.safetensors",
        "reconstructions.jpg",
    ]
    written = [
        "config.json",
        "metrics.csv",
        "last.safetensors",
        "best.safetensors",
        "reconstructions.png",
        "validation_results.txt",
        "test_results.txt",
        "validation/events.out.tfevents.1.host",
        "train/events.out.tfevents.1.host",
    ]
    (run.path / "validation").mkdir()
    for name in mine + written:
        (run.path / name).write_text("x")
    with run.locked():
        run.clear()
        left = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
        assert left == {"lock", *mine} and not (run.path / "validation").exists()
        run.clear()  # nothing to do is fine


def test_clear_begins_with_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle must not leave a run that goes on without its best checkpoint."""
    run = RunDir(tmp_path)
    for path in (run.last, run.best, run.config, run.metrics):
        path.write_text("x")
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        run.clear()
    assert not run.last.exists() and run.best.exists()


def test_config_comes_back(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    values = {"train": {"lr": 1e-5}, "x": [1, None]}
    run.write_config(values)
    assert json.loads(run.config.read_text()) == values


def test_metrics_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    header = "epoch,step,seconds,images_per_second,train_half_mse,validation_half_mse,lr\n"
    run.write_metrics([])
    assert run.metrics.read_bytes() == header.encode()
    run.write_metrics([EpochRecord(1, 40, 2.34567, 7654.3, 0.1 + 0.2, 1e-7, 1e-5)])
    assert run.metrics.read_text() == header + "1,40,2.346,7654,0.30000000000000004,1e-07,1e-05\n"


def test_results_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_results("test", Figures.from_squared_error(8.0, 1000, (-1.0, 1.0)), 7)
    assert (tmp_path / "test_results.txt").read_text() == (
        "half_mse: 0.004\nmse: 0.008\npsnr: 26.9897\nepoch: 7\n"
    )


def test_newest_run(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "nothing") is None
    assert newest_run(tmp_path) is None
    times = {"m/old": 100, "m/new": 300, "n/middle": 200}
    for name, when in times.items():
        run = RunDir(tmp_path / name)
        run.path.mkdir(parents=True)
        run.best.write_text("x")
        os.utime(run.best, (when, when))
    (tmp_path / "m" / "unfinished").mkdir()
    RunDir(tmp_path / "m" / "unfinished").last.write_text("x")
    RunDir(tmp_path / "m" / "folder").best.mkdir(parents=True)
    newest = newest_run(tmp_path)
    assert newest is not None and newest.path == tmp_path / "m" / "new"
    assert find_run(None, tmp_path).path == tmp_path / "m" / "new"
    assert find_run(tmp_path / "m" / "old", tmp_path).path == tmp_path / "m" / "old"


def test_runs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run under "):
        find_run(None, tmp_path)
    with pytest.raises(InputError, match="there is no run "):
        find_run(tmp_path / "gone", tmp_path)
    with pytest.raises(InputError, match=r"holds no best\.safetensors"):
        load_checkpoint(tmp_path)
