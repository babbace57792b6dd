"""Every kernel against its reference on a real GPU, on every case; needs only pytest and CuPy.

Without a GPU the tests are skipped; one operation shows on the emulator that they test something.
"""

from __future__ import annotations

import emulator
import kernel_checks
import pytest
from cases import CASES, Case

from cae_raw import gradcheck
from cae_raw.backends.cuda_backend import CudaBackend

ALL = [case for cases in CASES.values() for case in cases]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One skipped test, not hundreds, where there is no GPU."""
    if "gpu_case" in metafunc.fixturenames:
        works = not isinstance(kernel_checks.gpu(), str)
        metafunc.parametrize("gpu_case", ALL if works else [None], ids=str)


@pytest.fixture
def gpu() -> CudaBackend:
    backend = kernel_checks.gpu()
    if isinstance(backend, str):
        pytest.skip(backend)
    return backend


def test_case(gpu: CudaBackend, gpu_case: Case) -> None:
    """Twice with the same bits: a float sum in a changing order would show."""
    kernel_checks.check(gpu_case, [gpu, gpu])


def test_fused_cases_in_few_blocks(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two multiprocessors a block of the fused step takes several units, one after the other."""
    monkeypatch.setattr(gpu, "multiprocessors", 2)
    for case in ALL:
        if case.op.startswith("single_layer"):
            kernel_checks.check(case, [gpu, gpu])


def test_every_layer(gpu: CudaBackend) -> None:
    checks = gradcheck.run(backend=gpu)
    assert {check.kernel for check in checks} - {""}, "no kernel was compared"
    assert [str(check) for check in checks if not check.passed] == []


@pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))
@pytest.mark.parametrize("case", CASES["relu_forward"], ids=str)
def test_emulated_case(case: Case) -> None:
    backend = kernel_checks.emulated()
    kernel_checks.check(case, [backend, backend])
