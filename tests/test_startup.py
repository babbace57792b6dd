"""Help and version answer at once: they load none of the heavy modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import ROOT

HEAVY = (
    *("numpy", "PIL", "cupy", "safetensors", "threadpoolctl", "pooch", "filelock", "rich"),
    *("lmdb", "google", "matplotlib", "tensorboard", "tensorboardX"),
)
REPORT = """
import sys
from pathlib import Path
from cae_raw.app import main
try:
    main(sys.argv[1:])
except SystemExit:
    print("LOADED", *sys.modules)
"""


def loaded(*words: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", REPORT, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    names = result.stdout.rpartition("LOADED ")[2].split()
    assert "typer" in names
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("train", "--nonsense"),
        ("reconstruct",),
        ("show", "--help"),
        ("compare", "--help"),
        ("report", "--help"),
        ("data", "convert", "--help"),
        ("bench", "--help"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_loaded(words: tuple[str, ...]) -> None:
    assert loaded(*words).isdisjoint(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import cae_raw, sys; print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "cae_raw" in names
    assert {name.partition(".")[0] for name in names}.isdisjoint((*HEAVY, "typer"))


@pytest.mark.parametrize("words", [("info",), ("gradcheck", "--layer", "ReLU"), ("show", "none")])
def test_charts_are_loaded_where_they_are_drawn_only(words: tuple[str, ...]) -> None:
    assert loaded(*words).isdisjoint(("matplotlib", "tensorboard", "tensorboardX"))


def test_the_measure_sees_what_is_loaded() -> None:
    assert {"numpy", "threadpoolctl"} <= loaded("info")


def test_training_does_not_load_pytorch(tmp_path: Path) -> None:
    """tensorboardX would, where it is installed; afterwards it can be loaded as usual."""
    (tmp_path / "torch.py").write_text("here = True\n")
    code = """
import sys
from cae_raw.app import main
try:
    main(["train", "--epochs", "1", "--limit-train", "64", "--filters", "1", "--device", "cpu"])
except SystemExit as ended:
    assert not ended.code
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
import torch
assert torch.here
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    assert list(tmp_path.glob("runs/*/*/train/events*"))
