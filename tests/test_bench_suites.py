"""The suites and scripts in bench/ still run: once each, on the smallest shapes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cae_raw.measure.torch_step import CPU_MODES

ROOT = Path(__file__).resolve().parent.parent
SUITES = sorted(path.name for path in (ROOT / "bench").glob("bench_*.py"))


def test_there_are_suites() -> None:
    assert {"bench_ops.py", "bench_steps.py", "bench_cli.py", "bench_lmdb.py"} <= set(SUITES)


@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite: str) -> None:
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", f"bench/{suite}", "--benchmark-disable", "--tiny"]
    done = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* passed\b", done.stdout), done.stdout


def script(name: str, *words: object) -> None:
    """Run a script in bench/, without PyTorch."""
    command = [sys.executable, str(ROOT / "bench" / name), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no smaps_rollup here")
def test_sweep(tmp_path: Path) -> None:
    out, chart = tmp_path / "sweep.json", tmp_path / "sweep.png"
    words = ("--batches", 1, 3, "--sizes", 7, "--size-batch", 2, "--rounds", 1, "--torch")
    script("sweep.py", *words, "--threads", 1, "--out", out, "--chart", chart)
    result = json.loads(out.read_text())
    points = [(p["sweep"], p["batch"], p["size"], p["threads"]) for p in result["points"]]
    assert points == [
        ("batch", 1, 32, 1), ("batch", 3, 32, 1), ("size", 2, 7, 1), ("threads", 1024, 32, 1),
    ]  # fmt: skip
    for point in result["points"]:
        ours = point["candidates"]["cae-raw"]
        assert ours["peak_mib"] > 0.1
        assert ours["training"]["ms_per_image"] == ours["training"]["ms"] / point["batch"]
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no smaps_rollup here")
def test_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    words = (
        "--size",
        6,
        "--batch",
        256,
        "--rounds",
        1,
        "--threads",
        1,
        "--skip",
        "jax",
        *CPU_MODES,
    )
    script("side_by_side.py", *words, "--out", out)
    races = json.loads(out.read_text())["races"]
    assert [(r["what"], r["batch"]) for r in races] == [("training", 256), ("forward", 256)]
    assert races[0]["rows"]["cae-raw"]["images_per_s"] > 0 and races[0]["peak_mib"] > 0


def test_host_share(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    script("host_share.py", "--dataset", "shapes", "--epochs", 2, "--out", out)
    result = json.loads(out.read_text())
    assert 0 < result["ms_per_epoch"] * 2 < 1e3 * result["seconds"]
