"""`cae-raw gradcheck` as a user calls it, with the real kernels emulated where there is g++."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest

from cae_raw.app import app
from cae_raw.backends import kernel_source, probe
from cae_raw.backends.cuda_backend import CudaBackend
from cae_raw.backends.first_use import Announcer
from cae_raw.commands import shell
from cae_raw.ops.activation import TANH_FORWARD

emulated = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`import cupy` finds the emulator, and no device has been opened."""
    monkeypatch.setattr(probe, "_opened", {})
    with emulator.installed(emulator.emulated_cupy()) as cupy:
        yield cupy


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = shell.run(app, ["gradcheck", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--layer", "Linear", "--device", "cpu")
    assert (status, err) == (0, "")
    rows = [line for line in out.splitlines() if line.startswith("  ok ")]
    assert len(rows) == 12 and all(" gradient " in row for row in rows)
    assert len({row.index(" <= ") for row in rows}) == 1, "the columns are not aligned"
    assert "Linear: Linear(7, 5) on (3, 7)\n  ok    gradient  input " in out
    assert out.endswith("12 checks, no kernels without a GPU: all passed\n")
    assert out.count("central differences in float64") == 1


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--layer", "Tanh", "--device", "cpu", "--json")
    report = json.loads(out)
    assert (status, report["device"], report["passed"], report["failed"]) == (0, "cpu", True, 0)
    assert {"layer", "what", "shape", "error", "tolerance", "reason", "passed"} <= set(
        report["checks"][0]
    )
    assert "all passed" in err


def test_an_unknown_layer_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--layer", "Conv3d", "--device", "cpu")
    assert (status, out) == (2, "")
    assert "Conv2d" in err and err.count("\n") == 1


def test_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_opened", {})
    with emulator.installed(emulator.emulated_cupy()):
        status, out, err = run(capsys, "--device", "cuda:7")
    assert (status, out) == (2, "")
    assert "there is no cuda:7" in err


@emulated
@pytest.mark.usefixtures("gpu")
def test_kernels_are_compared_on_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    before = emulator.launch_count()
    status, out, _ = run(capsys, "--layer", "Linear", "--device", "cuda")
    assert status == 0
    assert emulator.launch_count() > before
    assert "  ok    kernel    linear_backward_weight result " in out
    assert "kernels on cuda:0: all passed" in out


@emulated
@pytest.mark.usefixtures("gpu")
def test_a_broken_kernel_file_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kernel_source.kernels_dir(), tmp_path / "kernels"))
    file = folder / "pool2d.cu"
    assert file.read_text().count("y[k] = best;") == 1
    file.write_text(file.read_text().replace("y[k] = best;", "y[k] = best + 0.001f;"))
    monkeypatch.setattr(kernel_source, "kernels_dir", lambda: folder)
    status, out, _ = run(capsys, "--layer", "MaxPool2d", "--device", "cuda")
    assert status == 1
    failed = [line for line in out.splitlines() if line.startswith("  FAIL")]
    assert any("  kernel    maxpool_forward result 0 " in line for line in failed)
    assert "kernel maxpool_forward" in out.splitlines()[-1]
    assert "mask_scatter" not in out.splitlines()[-1], "a kernel that is right is blamed"


# --- first use ------------------------------------------------------------------------------

NOTE = "compiling the CUDA kernels for cuda:0 (first run; cached afterwards) ...\n"


class SlowModule:
    """A RawModule whose compilation ends when it is told to."""

    def __init__(self, go: threading.Event) -> None:
        self.go = go

    def __call__(self, **_: Any) -> SlowModule:
        return self

    def get_function(self, _: str) -> Any:
        assert self.go.wait(10)
        return lambda *_: None


def _launch(backend: CudaBackend) -> None:
    x = backend.zeros((4,))
    backend.launch(TANH_FORWARD, 1, {"x": x, "y": backend.zeros((4,)), "n": 4})


def test_a_slow_compilation_is_announced_once(capfd: pytest.CaptureFixture[str]) -> None:
    cupy, go = emulator.emulated_cupy(), threading.Event()
    cupy.RawModule = SlowModule(go)
    backend = CudaBackend(cupy)
    backend.first_use = announcer = Announcer(backend, patience=0.01)
    compiling = threading.Thread(target=_launch, args=[backend])
    compiling.start()
    for _ in range(500):
        if announcer._said:
            break
        threading.Event().wait(0.01)
    go.set()
    compiling.join(10)
    announcer("another_file")
    threading.Event().wait(0.05)
    assert capfd.readouterr() == ("", NOTE)


def test_a_kernel_from_the_cache_is_not_announced(capfd: pytest.CaptureFixture[str]) -> None:
    cupy, go = emulator.emulated_cupy(), threading.Event()
    go.set()
    cupy.RawModule = SlowModule(go)
    backend = CudaBackend(cupy)
    backend.first_use = Announcer(backend, patience=0.01)
    _launch(backend)
    threading.Event().wait(0.05)
    assert capfd.readouterr() == ("", "")


@emulated
def test_an_opened_device_announces(gpu: Any) -> None:
    backend = probe.open_cuda(0)
    assert isinstance(backend.first_use, Announcer)
    assert backend.first_use.backend is backend
    assert not backend.compiling
    assert np.array_equal(backend.to_numpy(backend.zeros((2,))), [0, 0])
