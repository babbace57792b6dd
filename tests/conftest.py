"""Fixtures that several test files share, and a last line on how many kernels really ran."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Here, isolate
from training_cases import make_dataset

from cae_raw.backends import Backend, choose_backend, probe
from cae_raw.data import Dataset
from cae_raw.models import Autoencoder, single_layer


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    """Runs commands in a new folder, which is the working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    isolate(monkeypatch, folder)
    return Here(capsys)


@pytest.fixture
def dataset() -> Dataset:
    """37 training, 11 validation and 7 test images of 1x6x5."""
    return make_dataset()


@pytest.fixture
def model(rng: np.random.Generator) -> Autoencoder:
    """A single-layer model with 2 filters for gray images."""
    return single_layer(1, 2, rng)


@pytest.fixture(params=["emulator", "gpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """What `--device cuda` chooses: the emulator in CuPy's place, or the real GPU."""
    import emulator  # not at the top: the last line of a session asks whether kernels were imported
    from kernel_checks import gpu

    monkeypatch.setattr(probe, "_opened", {})
    if request.param == "gpu":
        if isinstance(gpu(), str):
            pytest.skip(f"no GPU: {gpu()}")
        yield choose_backend("cuda")
        return
    if emulator.available() is not None:
        pytest.skip(f"no emulator: {emulator.available()}")
    with emulator.installed(emulator.emulated_cupy()):
        yield choose_backend("cuda")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    checks = sys.modules.get("kernel_checks")
    if checks is None:
        return
    launches = sys.modules["emulator"].launch_count()
    for name, tally in (("emulated", checks.EMULATED), ("GPU", checks.ON_GPU)):
        terminalreporter.write_line(
            f"{name} kernel cases: {len(tally.cases)}"
            + (f" in {launches} launches" if name == "emulated" else "")
            + f"; largest error {tally.worst:.2f} of the tolerance ({tally.worst_case})"
        )
