"""Is it right at all: kernel tests, gradcheck, compute-sanitizer over the operations' cases."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from cae_raw import gradcheck as engine
from on_gpu import process
from on_gpu.device import ROOT, Bench
from on_gpu.record import MissingError, Record

# What training and evaluating import, beside what this script itself needs.
FOR_WHOLE_PROGRAM = ("filelock", "pooch", "rich", "safetensors", "threadpoolctl")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_ERRORS = 86  # exit status that compute-sanitizer is told to use
CLEAN = re.compile(r"========= (?:ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)")


def run_tests(record: Record, seconds: float, emulated: bool) -> None:
    """Run the tests that use a GPU; none may be skipped, and there must be some.

    Raises:
        AssertionError: unless all passed.
    """
    report = record.path.with_suffix(".junit.xml")
    files = ["tests/test_kernels_on_gpu.py"]
    absent = [name for name in FOR_WHOLE_PROGRAM if importlib.util.find_spec(name) is None]
    if not absent and not emulated:
        files.append("tests/test_device_cuda.py")
    record.put("files", files)
    record.put("not_installed", absent)
    chosen = "test_emulated_case" if emulated else "gpu and not emulat"
    command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, f"--junitxml={report}", *files]
    done = process.run(command, seconds, ROOT)
    record.put("output", done.stdout[-4000:] + done.stderr[-2000:])
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            counts = {name: int(suite.get(name, 0)) for name in counts}
    record.put("counts", counts)
    bad = counts["failures"] + counts["errors"] + counts["skipped"]
    if done.status != 0 or bad or not counts["tests"]:
        raise AssertionError(f"pytest ended with {done.status}: {counts}")


def run_gradcheck(bench: Bench, record: Record) -> None:
    """All layers: gradients against differences, kernels against NumPy.

    Raises:
        AssertionError: if a check fails.
    """
    name = "Tanh" if bench.emulated else None
    checks = engine.run(name, bench.backend)
    kernels = sorted({check.kernel for check in checks} - {""})
    record.put("checks", len(checks))
    record.put("kernels", kernels)
    record.put("failed", [str(check) for check in checks if not check.passed])
    shares = {
        check.kernel: check.error / check.tolerance
        for check in sorted(checks, key=lambda c: c.error / c.tolerance if c.tolerance else 0)
        if check.kernel and check.tolerance
    }
    record.put("worst_share_of_tolerance", shares)
    if record.content["failed"] or not kernels:
        raise AssertionError("gradcheck fails")


def find_sanitizer() -> str | None:
    """The program compute-sanitizer, on the path, in a toolkit or in NVIDIA's wheel."""
    on_path = shutil.which("compute-sanitizer")
    if on_path:
        return on_path
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    homes += sorted(glob.glob("/usr/local/cuda*"), reverse=True)
    homes += [
        str(Path(p) / "nvidia" / part) for p in sys.path for part in ("cu13", "cuda_sanitizer_api")
    ]
    for home in filter(None, homes):
        for place in ("bin", "compute-sanitizer", "extras/compute-sanitizer"):
            program = Path(home) / place / "compute-sanitizer"
            if program.is_file() and os.access(program, os.X_OK):
                return str(program)
    return None


def run_sanitizer(record: Record, seconds: float, program: str | None = None) -> None:
    """Each tool over the operations' cases, for a share of the time each.

    A tool counts as clean only when its own summary says so and cases really ran under it.

    Raises:
        MissingError: where there is no compute-sanitizer.
        AssertionError: if a tool found something, or did not come to a verdict.
    """
    program = program or find_sanitizer()
    record.put("program", program)
    if program is None:
        raise MissingError("compute-sanitizer is not installed: nothing was checked by it")
    deadline = time.monotonic() + seconds
    clean = []
    for number, tool in enumerate(TOOLS):
        share = (deadline - time.monotonic()) / (len(TOOLS) - number)
        found = one_tool(program, tool, max(share, 1.0))
        record.put(tool, found)
        clean.append(found["clean"])
    if not all(clean):
        raise AssertionError("not clean: see the tools")


def one_tool(program: str, tool: str, seconds: float) -> dict[str, Any]:
    """Run the cases under one tool; they stop by themselves before the time is over."""
    cases = [sys.executable, str(Path(__file__).with_name("run_cases.py"))]
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS), *cases]
    if tool == "memcheck":
        command[3:3] = ["--padding", "512"]  # else one array's end is the next one's begin
    started = time.monotonic()
    command += ["--seconds", str(seconds * 0.7), "--tool", tool]
    done = process.run(command, seconds, ROOT)
    output = done.stdout + done.stderr
    ran = re.search(r"^ran (\d+) of (\d+) cases$", output, re.MULTILINE)
    count, total = (int(ran.group(1)), int(ran.group(2))) if ran else (0, 0)
    summaries = [line for line in output.splitlines() if "SUMMARY" in line]
    clean = done.status == 0 and count > 0 and bool(summaries) and all(map(CLEAN.match, summaries))
    return {
        "clean": clean,
        "status": done.status,
        "cases": count,
        "of": total,
        "summary": summaries,
        "seconds": time.monotonic() - started,
        "output": "" if clean else output[-4000:],
    }
