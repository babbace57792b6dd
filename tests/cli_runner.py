"""Running the command line: in this process, which is quick, or in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cae_raw.app import main
from cae_raw.data import shapes

ROOT = Path(__file__).resolve().parent.parent
TRAIN = (
    *("train", "--device", "cpu", "--epochs", "1", "--filters", "2", "--batch-size", "16"),
    *("--images-every", "0"),  # event files without pictures, which take their time
)
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}


@dataclass(frozen=True)
class Result:
    """What a command left: exit status, stdout, stderr."""

    status: int
    out: str
    err: str


class Here:
    """Runs commands in this process, in a folder of the test's own, on a few shapes."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Result:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, out, err)


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Few shapes, `folder` as the working directory, no network, a cache beside the folder."""
    monkeypatch.setattr(shapes, "COUNTS", {"train": 40, "validation": 8, "test": 20})
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CAE_RAW_CACHE", str(folder.with_name("cache")))
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("no_proxy", raising=False)


def spawn(
    *arguments: object, cwd: Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cae_raw", *map(str, arguments)]


def picture(path: Path, *shape: int, seed: int = 0) -> Path:
    """Write random pixels, uint8 of this shape, in the format that the name says."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return path


def on_terminal(*arguments: object) -> subprocess.Popen[bytes]:
    """Start a command whose stdin, stdout and stderr are a terminal, reached through pipes.

    A process in between forks it, because forking this one, which has threads, is unsafe.
    """
    fork = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    return subprocess.Popen(
        [sys.executable, "-c", fork, *command(*arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )


def heed_ctrl_c() -> None:
    """For `preexec_fn`: tests in the background may have SIGINT ignored, and would pass it on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
