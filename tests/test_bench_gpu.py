"""bench/gpu.py from one end to the other, on the kernel emulator at tiny sizes.

Its figures mean nothing there. What is shown: every section runs, a failing or missing one is told
from a passing one, and the imports are those that its page promises.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest

from cae_raw.backends import kernel_source

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
# Dependencies of the package, of its tests, and others, that the script has to do without.
BLOCKED = ("rich", "safetensors", "threadpoolctl", "pooch", "filelock", "lmdb", "hypothesis")

emulated = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def run(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / "gpu.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(environment or {})},
        check=False,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run, with the modules in BLOCKED not to be imported and no sanitizer in sight."""
    folder = tmp_path_factory.mktemp("blocked")
    for name in BLOCKED:
        (folder / f"{name}.py").write_text("raise ImportError('blocked by the test')\n")
    out = folder / "gpu.json"
    paths = os.pathsep.join([str(folder), str(ROOT)])
    # hypothesis has a plugin for pytest, which would import what is blocked.
    environment = {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = run("--emulated", "--out", str(out), environment=environment)
    assert out.exists(), done.stderr
    return {"status": done.returncode, "stdout": done.stdout, **json.loads(out.read_text())}


@emulated
@pytest.mark.parametrize("name", ["tests", "gradcheck", "ceilings", "kernels", "step"])
def test_section(report: dict[str, Any], name: str) -> None:
    section = report["sections"][name]
    assert section["status"] == "ok", section


@emulated
def test_the_figures_say_that_they_are_emulated(report: dict[str, Any]) -> None:
    assert report["emulated"] is True
    assert "no figure says anything about a GPU" in report["note"]
    assert report["environment"]["gpu"] == "emulated"
    assert {"commit", "date", "packages", "python"} <= set(report["environment"])


@emulated
def test_every_kernel_is_timed(report: dict[str, Any]) -> None:
    launches = report["sections"]["kernels"]["launches"]
    assert {launch["kernel"] for launch in launches} == set(kernel_source.all_entries())
    for launch in launches:
        assert launch["ms"] > 0 and launch["bytes"] > 0
        assert launch["relative_error"] <= 1e-4
        assert launch["share_of_copy"] > 0 and launch["share_of_multiply_add"] >= 0
    split = [launch for launch in launches if launch["constants"].get("SPLIT")]
    assert {launch["where"] for launch in split} >= {"deep encoder, tf32x3", "deep decoder, tf32x3"}
    assert max(launch["relative_error"] for launch in split) <= 1e-5


@emulated
def test_the_tests_really_ran(report: dict[str, Any]) -> None:
    counts = report["sections"]["tests"]["counts"]
    assert counts["tests"] > 0 and counts["skipped"] == 0
    assert report["sections"]["tests"]["not_installed"] == []  # found, though not importable


@emulated
def test_a_missing_sanitizer_is_no_pass(report: dict[str, Any]) -> None:
    section = report["sections"]["sanitizer"]
    if section["program"] is not None:
        pytest.skip("compute-sanitizer is installed here")
    assert section["status"] == "missing"
    assert report["status"] == 1
    assert "sanitizer  missing" in report["stdout"]


@emulated
@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_missing_pytorch_is_recorded(report: dict[str, Any]) -> None:
    assert report["sections"]["pytorch"]["status"] == "missing"


@emulated
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorch_does_the_same_step(report: dict[str, Any]) -> None:
    section = report["sections"]["pytorch"]
    assert section["status"] == "ok" and not section.get("failures"), section
    assert {step["mode"] for step in section["steps"]} == {"eager", "channels_last"}


def test_emulated_figures_are_refused_among_the_results() -> None:
    path = BENCH / "results" / "emulated.json"
    done = run("--emulated", "--out", str(path))
    assert (done.returncode, path.exists()) == (2, False)
    assert "do not belong under bench/results/" in done.stderr


def test_without_a_gpu_there_is_one_line(tmp_path: Path) -> None:
    # CuPy, if it is installed, sees no device.
    done = run("--out", str(tmp_path / "gpu.json"), environment={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, (tmp_path / "gpu.json").exists()) == (2, False)
    assert done.stderr.startswith("gpu.py: error: ") and done.stderr.count("\n") == 1


@emulated
def test_a_section_that_takes_too_long_is_recorded(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("--emulated", "--out", str(out), "--sections", "kernels", "--budget-seconds", "0.05")
    section = json.loads(out.read_text())["sections"]["kernels"]
    assert (done.returncode, section["status"]) == (1, "timeout")


# --- the sanitizer's verdict ------------------------------------------------------------------

OK = "========= ERROR SUMMARY: 0 errors"
VERDICTS = {
    "clean": (f"ran 9 of 9 cases\n{OK}", 0, True),
    "clean, not all cases": (f"ran 3 of 9 cases\n{OK}", 0, True),
    "clean, racecheck": (
        "ran 9 of 9 cases\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
        0,
        True,
    ),
    "an error": ("ran 9 of 9 cases\n========= ERROR SUMMARY: 1 error", 86, False),
    "ten errors": ("ran 9 of 9 cases\n========= ERROR SUMMARY: 10 errors", 86, False),
    "a hazard": (
        "ran 9 of 9 cases\n========= RACECHECK SUMMARY: 10 hazards displayed (10 errors, 0)",
        86,
        False,
    ),
    "no case ran": (f"ran 0 of 9 cases\n{OK}", 0, False),
    "the cases did not end": (OK, 0, False),
    "a case is wrong": (f"ran 9 of 9 cases\n{OK}", 1, False),
    "no verdict": ("ran 9 of 9 cases", 0, False),
    "device refused": ("========= Error: Device not supported", 0, False),
}


@pytest.mark.parametrize("what", VERDICTS)
def test_verdict(what: str, tmp_path: Path) -> None:
    """A stand-in for compute-sanitizer that says and returns what it is told."""
    from on_gpu.checks import one_tool

    text, status, clean = VERDICTS[what]
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    program.chmod(0o755)
    found = one_tool(str(program), "memcheck", 30.0)
    assert found["clean"] is clean, found


def test_a_sanitizer_that_hangs_is_not_clean(tmp_path: Path) -> None:
    from on_gpu.checks import one_tool

    program = tmp_path / "compute-sanitizer"
    # The sleeping program is a child of the one that is killed.
    program.write_text(f"#!/bin/sh\necho 'ran 9 of 9 cases'\necho '{OK}'\nsleep 60\n")
    program.chmod(0o755)
    found = one_tool(str(program), "memcheck", 0.3)
    assert (found["clean"], found["status"], found["cases"]) == (False, None, 9)
    assert found["seconds"] < 30


@emulated
@pytest.mark.parametrize("tool", ["memcheck", "initcheck"])
def test_the_program_that_is_watched(tool: str) -> None:
    arguments = ["--emulated", "--seconds", "1", "--tool", tool]
    command = [sys.executable, str(BENCH / "on_gpu" / "run_cases.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    ran, total = (int(word) for word in done.stdout.split() if word.isdigit())
    assert 0 < ran <= total


def test_a_wrong_result_is_not_timed() -> None:
    from cae_raw.measure.clock import relative_error

    assert relative_error(np.ones(3), np.ones(3)) == 0
    assert relative_error(np.ones(3), np.ones(4)) == float("inf")
    error = relative_error(np.ones(3), np.array([1, np.nan, 1]))
    assert not error <= 1e-4
