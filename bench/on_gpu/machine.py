"""What the figures were measured on: GPU, driver, CUDA, versions, commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from cae_raw import __version__
from cae_raw.doctor.environment import cupy_packages, read_driver, read_nvrtc
from cae_raw.machine import cpu_name
from on_gpu.device import ROOT

PACKAGES = ("numpy", "pillow", "pytest", "torch", "triton", "jax", "jaxlib", "nvidia-cuda-nvrtc")
QUERY = "name,driver_version,clocks.max.sm,clocks.max.memory,power.limit,mig.mode.current"


def no_gpu() -> str | None:
    """Why there is nothing to measure, or None; asked in a process that lets the GPU go again."""
    command = [sys.executable, "-c", "from cae_raw.backends.probe import open_cuda; open_cuda(0)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["no kernel ran"])[-1]
    return last.partition("InputError: ")[2] or last


def describe(emulated: bool, commit: str | None) -> dict[str, Any]:
    """All facts; one that cannot be found out is None or an error in words."""
    versions = {name: _version(name) for name in PACKAGES}
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or _git("rev-parse", "HEAD"),
        "changed_files": None if commit else _changed(),
        "cae_raw": __version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpu": cpu_name(),
        "packages": {k: v for k, v in {**versions, **cupy_packages()}.items() if v},
    }
    if emulated:
        return {**facts, "gpu": "emulated"}
    driver = read_driver()
    if driver is not None:
        facts["driver_cuda"] = driver.version
        facts["gpu"] = [
            {"name": gpu.name, "arch": f"sm_{gpu.arch}", "memory": gpu.memory}
            for gpu in driver.gpus
        ]
    nvrtc = read_nvrtc()
    facts["nvrtc"] = ".".join(map(str, nvrtc.version))
    facts["nvidia_smi"] = _output("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader")
    return facts


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _changed() -> int | None:
    status = _git("status", "--porcelain")
    return None if status is None else len(status.splitlines())


def _git(*arguments: str) -> str | None:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
