"""bench/large_lmdb.py on a small database: it says what the training held, and checks the bound."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_runner import ROOT

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no /proc/PID/status here"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import large_lmdb

    return large_lmdb


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | None:
    monkeypatch.setattr(sys, "argv", ["large_lmdb.py", *map(str, arguments)])
    try:
        script.main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return None


def test_memory_of_a_training(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--records", 2000, "--filters", 1, "--dir", tmp_path, "--json", tmp_path / "r.json")
    assert run(script, monkeypatch, *words) is None
    result = json.loads((tmp_path / "r.json").read_text())
    out, err = capfd.readouterr()
    assert json.loads(out) == result and "records: 2,000 of 2,000" in err
    assert "1,800 training images of 3x64x64" in err
    peak, parts = result["peak_memory_bytes"], result["most_anonymous_bytes"]
    assert 0 < parts < peak <= result["bound_bytes"]
    assert 0 < result["most_mapped_file_bytes"] < peak
    assert result["file_bytes"] > 2000 * 3 * 64 * 64
    made = (tmp_path / "2000.lmdb" / "data.mdb").stat()

    monkeypatch.setattr(script, "BOUND", 10**6)
    assert run(script, monkeypatch, *words) == 1
    assert not json.loads((tmp_path / "r.json").read_text())["within_the_bound"]
    assert (tmp_path / "2000.lmdb" / "data.mdb").stat().st_ino == made.st_ino
