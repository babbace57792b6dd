"""Runs the project's CUDA kernels on the CPU, below the point where CuPy would be called."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .compile import CompileError, EmulatorError, compiler
from .fake_cupy import default_sanitizer, installed, make
from .kernel import launch_count
from .memory import OutOfMemoryError, check_red_zones
from .streams import deferred

__all__ = [
    "CompileError",
    "EmulatorError",
    "OutOfMemoryError",
    "available",
    "check_order_independence",
    "check_red_zones",
    "deferred",
    "emulated_cupy",
    "installed",
    "launch_count",
    "run_sanitized",
    "sanitizer_library",
]


def available() -> str | None:
    """None where kernels can be emulated, else the reason why not."""
    if platform.system() != "Linux":
        return "the kernel emulator runs on Linux only"
    if compiler() is None:
        return "the kernel emulator needs g++ (or CAE_RAW_EMULATOR_CXX)"
    return None


def emulated_cupy(
    order_seed: int = 0,
    sanitize: str | None = None,
    *,
    order_check: bool = False,
    write_check: bool = False,
    seconds: int = 300,
    multiprocessors: int = 4,
    devices: int = 1,
    total_memory: int = 8 << 30,
    compute_capability: str = "90",
) -> types.ModuleType:
    """A module to use in place of ``cupy``.

    ``order_seed`` fixes the order of blocks, and of threads between barriers. ``sanitize``: "none",
    "undefined" (the default; misaligned addresses, array bounds, overflow) or "address,undefined",
    which works only in a process started by ``run_sanitized``; None takes the environment's
    ``CAE_RAW_EMULATOR_SANITIZE``. ``order_check`` runs every launch twice from the same memory in
    two orders and raises EmulatorError where the bits differ. ``write_check`` raises it where a
    launch changed anything through a pointer to const, or outside of the views that it was given.
    A launch that takes more than ``seconds`` of processor time is an error. ``total_memory`` in
    bytes.
    """
    chosen = default_sanitizer() if sanitize is None else None if sanitize == "none" else sanitize
    return make(
        order_seed,
        chosen,
        order_check,
        write_check,
        seconds,
        multiprocessors,
        devices,
        total_memory,
        compute_capability,
    )


def check_order_independence(
    run: Callable[[types.ModuleType], Sequence[np.ndarray]], seeds: Sequence[int] = (0, 1, 2)
) -> Sequence[np.ndarray]:
    """Call ``run(cupy)`` once per seed; the host arrays it returns must agree bit for bit."""
    results = [run(emulated_cupy(seed)) for seed in seeds]
    for seed, result in zip(seeds[1:], results[1:], strict=True):
        for i, (a, b) in enumerate(zip(results[0], result, strict=True)):
            if a.tobytes() != b.tobytes():
                raise EmulatorError(f"result {i} differs between the orders {seeds[0]} and {seed}")
    return results[0]


def sanitizer_library() -> str | None:
    """The path of AddressSanitizer's runtime, or None."""
    cxx = compiler()
    if cxx is None:
        return None
    command = [cxx, "-print-file-name=libasan.so"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return str(Path(path).resolve()) if os.path.isabs(path) and os.path.exists(path) else None


def run_sanitized(
    arguments: Sequence[str], sanitize: str = "address,undefined", timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run ``python *arguments`` (such as ``-m pytest tests/test_conv2d.py``) with AddressSanitizer.

    The runtime must be in the process before everything else, hence the new process.
    """
    library = sanitizer_library()
    if library is None:
        raise EmulatorError("AddressSanitizer's runtime (libasan) is not installed")
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        # Python itself leaks; a finding becomes an EmulatorError, once per launch.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=0:detect_stack_use_after_return=0"
        ":suppress_equal_pcs=0",
        "CAE_RAW_EMULATOR_SANITIZE": sanitize,
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
