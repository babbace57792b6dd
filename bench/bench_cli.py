"""How long the command line takes to answer, in a process of its own each time.

pytest bench/bench_cli.py --benchmark-only
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from provenance import ROOT

COMMANDS = {
    "python-alone": ("-c", "pass"),
    "import": ("-c", "import cae_raw"),
    "help": ("-m", "cae_raw", "--help"),
    "train-help": ("-m", "cae_raw", "train", "--help"),
    "version": ("-m", "cae_raw", "--version"),
    "info": ("-m", "cae_raw", "info", "--model", "single-layer"),
}


def parameters(tiny: bool) -> dict[str, Any]:
    return {"words": (list(COMMANDS.values()), list(COMMANDS))}


def test_start(benchmark: Callable[..., Any], words: tuple[str, ...]) -> None:
    benchmark.group = "start-up"
    command = [sys.executable, *words]
    done = benchmark(
        lambda: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    )
    assert words[0] == "-c" or "cae-raw" in done.stdout or "single-layer" in done.stdout
