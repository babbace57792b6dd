"""Facts about the machine: the peak memory of this process, by all ways to learn it."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import sys
from pathlib import Path
from cae_raw.machine import peak_memory

def no_file(*_):
    raise FileNotFoundError

if sys.argv[1] == "without /proc":
    Path.read_text = no_file
before = peak_memory()
held = b"x" * (200 << 20)
print(before, peak_memory())
del held
print(peak_memory())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="not known on Windows")
@pytest.mark.parametrize("way", ["with /proc", "without /proc"])
def test_peak_memory_is_the_most_that_was_held(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, way], capture_output=True, text=True, check=True
    )
    before, during, after = map(int, done.stdout.split())
    assert during >= 200 << 20
    assert abs(after - during) < 20 << 20, "what was given back still counts"
    if way == "with /proc" and sys.platform == "linux":
        assert 2 << 20 < before <= during - (150 << 20)
