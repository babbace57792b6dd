"""The suites in bench/ still run: once each, on the smallest shapes, without timing anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
