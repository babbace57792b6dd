"""`cae-raw train` as a user meets it: data sets, output, files, resume, restart, signals."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from cli_runner import TRAIN, Here, command, on_terminal, picture, spawn

from cae_raw.data import cifar, mnist
from cae_raw.training import checkpoint

RUN = Path("runs/single-layer/shapes_adam_lr=0.001_b=16_f=2")
FILES = {
    "best.safetensors",
    "config.json",
    "last.safetensors",
    "metrics.csv",
    "reconstructions.png",
    "test_results.txt",
    "validation_results.txt",
}
EVENTS = {"train", "validation"}


def weights(run: Path) -> bytes:
    saved = checkpoint.load(run / "last.safetensors").parameters
    return b"".join(saved[name].tobytes() for name in sorted(saved))


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, less what differs from time to time."""
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return rows


def test_a_run_and_what_it_says(here: Here) -> None:
    result = here(*TRAIN)
    assert (result.status, result.err) == (0, "")
    assert {path.name for path in RUN.iterdir()} - {"lock"} == FILES | EVENTS
    lines = result.out.splitlines()
    assert lines[0] == (
        "single-layer on shapes: 40 training images of 3x32x32, 8 validation, 20 test; on cpu"
    )
    assert lines[1] == f"run: {RUN}"
    assert lines[2] == "single-layer for images of 3x32x32 in [-1, 1], loss half_mse"
    assert "  total" in "\n".join(lines) and "MFLOP in training" in "\n".join(lines)
    assert any(line.startswith("epoch 1/1: train half_mse 0.") for line in lines)
    assert lines[-4:] == [
        f"  cae-raw evaluate {RUN}",
        f"  cae-raw show {RUN}",
        f"  cae-raw reconstruct --run {RUN} IMAGE.png",
        "  tensorboard --logdir runs",
    ]
    assert f"the run is in {RUN}" in lines
    assert f"look at {RUN / 'reconstructions.png'}" in lines


def test_what_it_proposes_next_works(here: Here) -> None:
    picture(Path("IMAGE.png"), 9, 8, 3)
    result = here(*TRAIN, "--runs-dir", "my runs")
    proposed = [line for line in result.out.splitlines() if line.startswith("  cae-raw ")]
    assert len(proposed) == 3
    for line in proposed:
        assert here(*shlex.split(line)[1:], "--device", "cpu").status == 0
    assert Path("IMAGE.comparison.png").exists()


def test_json_alone_on_stdout(here: Here) -> None:
    result = here(*TRAIN, "--json")
    report = json.loads(result.out)
    assert "epoch 1/1" in result.err
    assert report["run"] == str(RUN)
    assert (report["finished"], report["epochs"], report["steps"]) == (True, 1, 3)
    assert report["best_epoch"] == 1
    for split in ("validation", "test"):
        figures = report[split]
        assert figures["mse"] == pytest.approx(2 * figures["half_mse"])
        stated = (RUN / f"{split}_results.txt").read_text()
        assert f"half_mse: {figures['half_mse']:.8g}\n" in stated
    assert report["validation"]["half_mse"] == float(metrics(RUN)[0]["validation_half_mse"])
    if sys.platform == "linux":
        assert report["peak_memory_bytes"] > 10 << 20
        said = next(line for line in result.err.splitlines() if line.startswith("peak memory: "))
        assert said == f"peak memory: {report['peak_memory_bytes'] / 2**20:,.0f} MiB"


def test_resumed_is_as_never_stopped(here: Here) -> None:
    assert here(*TRAIN, "--epochs", "3", "--runs-dir", "straight").status == 0
    assert here(*TRAIN).status == 0
    second = here(*TRAIN, "--epochs", "3")
    assert "resuming after 1 epoch" in second.out
    straight = Path("straight", *RUN.parts[1:])
    assert weights(RUN) == weights(straight)
    assert metrics(RUN) == metrics(straight)
    again = here(*TRAIN, "--epochs", "3")
    assert again.status == 0
    assert "this run has finished 3 epochs" in again.out
    assert "a larger --epochs trains on, --restart begins anew" in again.out
    assert weights(RUN) == weights(straight)


def test_restart_begins_anew_without_a_terminal(here: Here) -> None:
    here(*TRAIN, "--epochs", "2")
    assert here(*TRAIN, "--restart").status == 0
    assert [row["epoch"] for row in metrics(RUN)] == ["1"]


def test_restart_deletes_nothing_when_training_cannot_begin(here: Here) -> None:
    for i in range(12):
        picture(Path(f"photos/{i}.png"), 8, 8, 3, seed=i)
    words = (*TRAIN, "--dataset", "folder", "--data-dir", "photos", "--size", "8")
    assert here(*words).status == 0
    run = next(Path("runs/single-layer").iterdir())
    before = weights(run)
    Path("photos").rename("moved")
    assert here(*words, "--restart").status == 2
    assert weights(run) == before


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("answer", "status", "epochs"), [(b"n\n", 2, 2), (b"y\n", 0, 1), (b"\x03", 130, 2)]
)
def test_restart_asks_on_a_terminal(here: Here, answer: bytes, status: int, epochs: int) -> None:
    words = (*TRAIN, "--limit-train", "16")
    assert spawn(*words, "--epochs", "2", cwd=Path(".")).returncode == 0
    run = Path(f"{RUN}_n=16")
    before = weights(run)
    with on_terminal(*words, "--restart") as process:
        assert process.stdin is not None and process.stdout is not None
        shown = b""
        while not shown.endswith(b"[y/N]: "):
            piece = process.stdout.read1()
            assert piece, shown
            shown += piece
        os.write(process.stdin.fileno(), answer)
        while answer == b"\x03" and process.poll() is None:
            # A Ctrl-C just before the question begins to read is noticed after it has read.
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            with suppress(BrokenPipeError):
                os.write(process.stdin.fileno(), answer)
        rest = process.stdout.read()
    assert f"Delete the checkpoints and figures in {run}?".encode() in shown
    assert process.returncode == status, rest
    assert b"Traceback" not in rest
    assert len(metrics(run)) == epochs
    assert (weights(run) == before) == (status != 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_resumed(here: Here, number: signal.Signals) -> None:
    words = ("train", "--device", "cpu", "--filters", "2", "--limit-train", "2000")
    process = subprocess.Popen(
        command(*words, "--epochs", "1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    while not (line := process.stdout.readline()).startswith("epoch 1/1000: "):
        assert line, "it ended before an epoch did"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert "everything is saved. To go on:" in out
    again = shlex.split(out.splitlines()[-1])
    assert again == ["cae-raw", *words, "--epochs", "1000"]

    done = metrics(Path("runs/single-layer/shapes_adam_lr=0.001_b=128_f=2_n=2000"))
    epochs = str(len(done) + 1)
    resumed = spawn(*words, "--epochs", epochs, cwd=Path("."))
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming after {len(done)} epoch" in resumed.stdout


def test_a_folder_of_images(here: Here) -> None:
    for i in range(20):
        picture(Path(f"my photos/{i}.png"), 10 + i, 9, *([3] if i % 2 else []), seed=i)
    Path("my photos/broken.png").write_text("no")
    words = ("--dataset", "folder", "--data-dir", "my photos", "--size", "8")
    result = here(*TRAIN, *words)
    assert result.status == 0, result.err
    assert "1 unreadable image left out: broken.png" in result.out
    run = Path("runs/single-layer/folder-my-photos_adam_lr=0.001_b=16_f=2_size=8")
    assert {path.name for path in run.iterdir()} - {"lock"} == FILES | EVENTS
    # The same images under another spelling of their path: the same run.
    words = ("--dataset", "folder", "--data-dir", Path("my photos").resolve(), "--size", "8")
    assert "this run has finished 1 epoch," in here(*TRAIN, *words).out
    # And from elsewhere, since the run knows where they lie.
    run = run.resolve()
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert here("evaluate", run, "--device", "cpu").status == 0


def test_images_that_changed_are_not_mixed_into_a_run(here: Here) -> None:
    for i in range(12):
        picture(Path(f"photos/{i}.png"), 8, 8, 3, seed=i)
    words = (*TRAIN, "--dataset", "folder", "--data-dir", "photos", "--size", "8")
    assert here(*words).status == 0
    for i in range(12):
        picture(Path(f"photos/{i}.png"), 8, 8, 3, seed=100 + i)
    refused = here(*words, "--epochs", "2")
    assert refused.status == 2
    assert "was trained with other images" in refused.err
    assert here(*words, "--restart").status == 0


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"train": 30, "t10k": 10}
    monkeypatch.setattr(mnist, "COUNTS", counts)
    monkeypatch.setattr(mnist, "VALIDATION", 6)
    rng = np.random.default_rng(0)
    Path("data").mkdir()
    for part, n in counts.items():
        images = idx(rng.integers(0, 256, (n, 28, 28), np.uint8))
        Path(f"data/{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        Path(f"data/{part}-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 10, n, np.uint8)))
    result = here(*TRAIN, "--dataset", "mnist", "--data-dir", "data")
    assert result.status == 0, result.err
    assert "24 training images of 1x28x28, 6 validation, 10 test" in result.out
    run = "runs/single-layer/mnist_adam_lr=0.001_b=16_f=2"
    lost = here("evaluate", run, "--device", "cpu")
    assert lost.status == 2 and "name it with --data-dir" in lost.err
    proposed = f"cae-raw evaluate {run} --data-dir data"
    assert f"  {proposed}\n" in result.out
    assert here(*shlex.split(proposed)[1:], "--device", "cpu").status == 0


def test_cifar10(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH_COUNT", 6)
    rng = np.random.default_rng(0)
    folder = Path("data/cifar-10-batches-bin")
    folder.mkdir(parents=True)
    for name in cifar.BATCHES:
        records = rng.integers(0, 256, (6, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    result = here(*TRAIN, "--dataset", "cifar10", "--data-dir", "data", "--json")
    assert result.status == 0, result.err
    assert "30 training images of 3x32x32, 6 validation, 6 test" in result.err
    report = json.loads(result.out)
    assert report["validation"] == report["test"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--limit-train", "20", "--seed", "3"), "shapes_adam_lr=0.001_b=16_f=2_seed=3_n=20"),
        (("--lr", "1e-5", "--l2-penalty", "1e-9"), "shapes_adam_lr=1e-05_b=16_l2=1e-09_f=2"),
        (
            ("--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.9", "--comment", "first"),
            "shapes_sgd_lr=0.1_b=16_f=2_mom=0.9_first",
        ),
        (
            ("--betas", "0.8", "0.99", "--eps", "1e-6"),
            "shapes_adam_lr=0.001_b=16_f=2_betas=0.8,0.99_eps=1e-06",
        ),
        (
            ("--lr-decay-epochs", "1", "--lr-decay-factor", "0.5", "--epochs", "2"),
            "shapes_adam_lr=0.001_b=16_f=2_decay=1_factor=0.5",
        ),
        (
            ("--l2-penalty", "0.1", "--l2-decoder", "--threads", "3"),
            "shapes_adam_lr=0.001_b=16_l2=0.1_l2dec=1_f=2",
        ),
    ],
)
def test_options_name_the_run(here: Here, options: tuple[str, ...], name: str) -> None:
    report = json.loads(here(*TRAIN, *options, "--json").out)
    assert Path(report["run"]).name == name
    if "--limit-train" in options:
        assert report["steps"] == 2
    if "--lr-decay-epochs" in options:
        assert [float(row["lr"]) for row in metrics(Path(report["run"]))] == [0.001, 0.0005]


def test_the_number_of_threads_changes_no_bit(here: Here) -> None:
    for threads in (1, 3):
        here(*TRAIN, "--threads", threads, "--runs-dir", f"runs{threads}")
    assert weights(Path("runs1", *RUN.parts[1:])) == weights(Path("runs3", *RUN.parts[1:]))


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_bar_on_a_terminal(here: Here) -> None:
    with on_terminal(*TRAIN, "--epochs", "2", "--limit-train", "16") as process:
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert b"epoch 2/2: train half_mse" in shown
    assert "\u2501".encode() in shown, "no bar was drawn"
    assert b"look at runs/" in shown
