"""What the figures of a script were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cae_raw.machine import blas, cpu_name
from cae_raw.training.engine import available_threads

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The checkout's commit, with a mark where it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def provenance() -> dict[str, Any]:
    """Date, commit, machine and versions, and how busy the machine is."""
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": available_threads(),
        "blas": blas(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_before": os.getloadavg(),
    }
