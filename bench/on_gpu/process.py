"""Running another program for a limited time, and ending all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """`status` is None for a program that was killed because its time was over."""

    status: int | None
    stdout: str
    stderr: str


def run(command: Sequence[str], seconds: float, folder: Path) -> Ended:
    """Run a program in `folder`. What it printed is kept, however it ended."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a group of its own, so that its children can be ended with it
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds)
        return Ended(process.returncode, stdout, stderr)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        return Ended(None, stdout, stderr)
