"""The doctor on machines with one thing broken: it must find that thing, and say what mends it."""

from __future__ import annotations

import io
import json
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from emulator import available, emulated_cupy, installed
from typer.testing import CliRunner

from cae_raw.app import app
from cae_raw.commands.doctor import doctor
from cae_raw.doctor import CHECKS, Environment, examine, healthy, usable
from cae_raw.doctor import environment as facts
from cae_raw.doctor.environment import Driver, Gpu, Nvrtc

HOPPER = Gpu("H200", (9, 0), 141 << 30)
VOLTA = Gpu("V100", (7, 0), 16 << 30)
RUBIN = Gpu("newer than this compiler", (13, 1), 288 << 30)
KEPLER = Gpu("K80", (3, 7), 12 << 30)
NVRTC_13 = Nvrtc((13, 5), (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121))
NVRTC_12 = Nvrtc((12, 9), (50, 60, 70, 75, 80, 86, 89, 90, 100, 120))


def raising(error: Exception) -> Callable[..., NoReturn]:
    def ask(*_: Any) -> NoReturn:
        raise error

    return ask


def answering(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def cupy_of_version(version: str) -> Callable[[], Any]:
    return answering(types.SimpleNamespace(__version__=version))


class CudaRuntimeError(RuntimeError):
    pass


NOT_INSTALLED = raising(ModuleNotFoundError("No module named 'cupy'", name="cupy"))
INSUFFICIENT = raising(
    CudaRuntimeError(
        "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
    )
)

WORKING = Environment(
    packages=answering({"cupy-cuda13x": "14.2.0"}),
    gpu_in_slot=answering(True),
    driver=answering(Driver(13000, (HOPPER,))),
    cupy=cupy_of_version("14.2.0"),
    runtime_version=answering(13020),
    device_count=answering(1),
    nvrtc=answering(NVRTC_13),
    headers=answering("/site-packages/nvidia/cu13/include"),
    cache_folder=answering(Path("/home/someone/.cupy/kernel_cache")),
    try_to_write=answering(None),
    memory=answering((140 << 30, 141 << 30)),
    run_kernel=answering(None),
    variables={},
)
# Without CuPy every question that goes through it fails the same way.
WITHOUT_CUPY = {
    "packages": answering({}),
    **dict.fromkeys(
        ("cupy", "runtime_version", "device_count", "nvrtc", "memory", "run_kernel"), NOT_INSTALLED
    ),
    "headers": raising(ModuleNotFoundError("No module named 'cuda'", name="cuda")),
}
WITHOUT_GPU = {
    "driver": answering(None),
    "gpu_in_slot": answering(False),
    "device_count": INSUFFICIENT,
    "memory": INSUFFICIENT,
    "run_kernel": INSUFFICIENT,
}

# What is broken: the answers that differ, the check that must find it, what it must say, and the
# line that mends it.
BROKEN: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no CuPy": (WITHOUT_CUPY, "cupy", "not installed", 'pip install --upgrade "cae-raw[cuda13]"'),
    "no CuPy, older driver": (
        {**WITHOUT_CUPY, "driver": answering(Driver(12040, (HOPPER,)))},
        "cupy",
        "not installed",
        'pip install --upgrade "cae-raw[cuda12]"',
    ),
    "no CuPy, Volta": (
        {**WITHOUT_CUPY, "driver": answering(Driver(13000, (VOLTA,)))},
        "cupy",
        "not installed",
        '"cae-raw[cuda12]"',
    ),
    "CuPy does not import": (
        {"cupy": raising(ImportError("numpy.core.multiarray failed to import"))},
        "cupy",
        "cannot be imported: numpy.core.multiarray",
        'pip install --upgrade "cae-raw[cuda13]"',
    ),
    "CuPy needs a module that is missing": (
        {"cupy": raising(ModuleNotFoundError("No module named 'cuda'", name="cuda"))},
        "cupy",
        "No module named 'cuda'",
        'pip install --upgrade "cae-raw[cuda13]"',
    ),
    "two CuPy packages": (
        {"packages": answering({"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"})},
        "one cupy",
        "2 packages own the module cupy: cupy-cuda12x, cupy-cuda13x",
        'pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install --upgrade "cae-raw[cuda13]"',
    ),
    "CuPy for AMD": (
        {"packages": answering({"cupy-rocm-7-0": "14.2.0"})},
        "one cupy",
        "AMD",
        'pip uninstall -y cupy-rocm-7-0 && pip install --upgrade "cae-raw[cuda13]"',
    ),
    "old CuPy": (
        {"cupy": cupy_of_version("13.6.0"), "packages": answering({"cupy-cuda13x": "13.6.0"})},
        "cupy version",
        "13.6.0 is older than 14.2",
        'pip install --upgrade "cae-raw[cuda13]"',
    ),
    "a release candidate that is too old": (
        {"cupy": cupy_of_version("14.1.0rc1")},
        "cupy version",
        "older than 14.2",
        "pip install",
    ),
    "a GPU without a driver": (
        {**WITHOUT_GPU, "gpu_in_slot": answering(True)},
        "driver",
        "no driver for it can be loaded",
        "--gpus all",
    ),
    "a damaged driver": (
        {"driver": answering(Driver(0, error="libcuda.so.1: invalid ELF header"))},
        "driver",
        "invalid ELF header",
        "install NVIDIA's driver anew",
    ),
    "a driver before CUDA 12": (
        {"driver": answering(Driver(11080, (HOPPER,)))},
        "driver",
        "up to 11.8",
        "update NVIDIA's driver to 580.65",
    ),
    "hidden GPUs": (
        {
            "driver": answering(Driver(13000, (), "CUDA_ERROR_NO_DEVICE")),
            "variables": {"CUDA_VISIBLE_DEVICES": ""},
            "device_count": raising(CudaRuntimeError("cudaErrorNoDevice: no device")),
        },
        "gpu",
        "CUDA_VISIBLE_DEVICES is ''",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "a driver updated while it runs": (
        {"driver": answering(Driver(13000, (), "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"))},
        "gpu",
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "restart after a driver update",
    ),
    "wheel newer than the driver": (
        {"driver": answering(Driver(12080, (HOPPER,))), "device_count": INSUFFICIENT},
        "runtime",
        "CuPy is for CUDA 13, the driver runs up to 12.8",
        'pip uninstall -y cupy-cuda13x && pip install --upgrade "cae-raw[cuda12]"  '
        "(or update NVIDIA's driver to 580.65 or newer)",
    ),
    "wheel newer than the driver, seen by the kernel": (
        {"driver": answering(Driver(12080, (HOPPER,))), "device_count": INSUFFICIENT},
        "kernel",
        "cudaErrorInsufficientDriver",
        'pip uninstall -y cupy-cuda13x && pip install --upgrade "cae-raw[cuda12]"',
    ),
    "no NVRTC, CUDA 13": (
        {"nvrtc": raising(RuntimeError("CuPy failed to load libnvrtc.so.13"))},
        "nvrtc",
        "failed to load libnvrtc.so.13",
        'pip install "nvidia-cuda-nvrtc>=13,<14"',
    ),
    "no NVRTC, CUDA 12": (
        {
            "nvrtc": raising(RuntimeError("CuPy failed to load libnvrtc.so.12")),
            "runtime_version": answering(12090),
            "packages": answering({"cupy-cuda12x": "14.2.0"}),
        },
        "nvrtc",
        "failed to load libnvrtc.so.12",
        "pip install nvidia-cuda-nvrtc-cu12",
    ),
    "no headers": (
        {"headers": answering(None)},
        "headers",
        "finds none",
        'pip install "nvidia-cuda-runtime>=13,<14"',
    ),
    "no headers, CUDA 12": (
        {
            "headers": answering(None),
            "runtime_version": answering(12090),
            "packages": answering({"cupy-cuda12x": "14.2.0"}),
        },
        "headers",
        "finds none",
        "pip install nvidia-cuda-runtime-cu12",
    ),
    "no headers, seen by the kernel": (
        {"run_kernel": raising(RuntimeError("Failed to find CUDA headers"))},
        "kernel",
        "Failed to find CUDA headers",
        'pip install "nvidia-cuda-runtime>=13,<14"',
    ),
    "Volta with CUDA 13": (
        {"driver": answering(Driver(13000, (VOLTA,)))},
        "architecture",
        "NVRTC 13.5 cannot compile for sm_70 (V100)",
        'pip uninstall -y cupy-cuda13x && pip install --upgrade "cae-raw[cuda12]"',
    ),
    "a GPU newer than NVRTC": (
        {"driver": answering(Driver(13000, (RUBIN,)))},
        "architecture",
        "cannot compile for sm_131",
        'pip install --upgrade "nvidia-cuda-nvrtc>=13,<14"',
    ),
    "a GPU too old for any": (
        {"driver": answering(Driver(12040, (KEPLER,))), "nvrtc": answering(NVRTC_12)},
        "architecture",
        "sm_37",
        "use --device cpu",
    ),
    "no writable cache": (
        {"try_to_write": raising(PermissionError(13, "Permission denied"))},
        "kernel cache",
        "kernel_cache cannot be written: Permission denied",
        "export CUPY_CACHE_DIR=",
    ),
    "no memory left": (
        {"memory": answering((100 << 20, 141 << 30))},
        "memory",
        "cuda:0 0.1 of 141.0 GiB free",
        "nvidia-smi",
    ),
    "no memory left for the kernel": (
        {"run_kernel": raising(MemoryError("Out of memory allocating 4,096 bytes"))},
        "kernel",
        "Out of memory",
        "nvidia-smi",
    ),
    "no code for this GPU": (
        {"run_kernel": raising(RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image"))},
        "kernel",
        "cuda:0 did not run a kernel: CUDA_ERROR_NO_BINARY_FOR_GPU",
        "pip install --upgrade",
    ),
    "PTX newer than the driver": (
        {"run_kernel": raising(RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided"))},
        "kernel",
        "UNSUPPORTED_PTX_VERSION",
        "unset CUPY_COMPILE_WITH_PTX",
    ),
    "CuPy sees fewer GPUs than the driver": (
        {"device_count": answering(0)},
        "kernel",
        "CuPy does not",
        "report",
    ),
    "a wrong result": (
        {"run_kernel": raising(ValueError("cuda:0 computes wrong results"))},
        "kernel",
        "computes wrong results",
        "report",
    ),
    "something nobody thought of": (
        {"memory": raising(KeyError("surprise"))},
        "memory",
        "the check itself failed: KeyError: 'surprise'",
        "report",
    ),
}


def test_a_machine_that_works() -> None:
    findings = list(examine(WORKING))
    assert [finding.name for finding in findings] == list(CHECKS)
    assert all(finding.verdict == "ok" for finding in findings), findings
    assert not any(finding.remedy for finding in findings)
    assert healthy(findings) and usable(findings)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_machine(what: str) -> None:
    changes, name, found, remedy = BROKEN[what]
    findings = {finding.name: finding for finding in examine(replace(WORKING, **changes))}
    assert list(findings) == list(CHECKS)
    finding = findings[name]
    assert finding.verdict == "problem", finding
    assert found in finding.found
    assert remedy in finding.remedy
    assert "\n" not in finding.found + finding.remedy
    assert not healthy(list(findings.values()))
    assert all((f.verdict == "problem") == bool(f.remedy) for f in findings.values())


@pytest.mark.parametrize("more", [{}, WITHOUT_CUPY], ids=["with CuPy", "without CuPy"])
def test_a_machine_without_a_gpu_is_in_order(more: dict[str, Any]) -> None:
    findings = list(examine(replace(WORKING, **{**more, **WITHOUT_GPU})))
    assert findings[0].found == "no NVIDIA GPU driver found; the CPU is used"
    assert healthy(findings)
    assert not usable(findings)
    assert findings[-1].verdict == "skipped"


QUESTIONS = sorted(set(Environment.__dataclass_fields__) - {"variables"})


@pytest.mark.parametrize("field", QUESTIONS)
def test_every_question_may_fail(field: str) -> None:
    """One question raising something odd neither ends the examination nor hides a check."""
    odd = raising(ZeroDivisionError("odd"))
    names = [finding.name for finding in examine(replace(WORKING, **{field: odd}))]
    assert names == list(CHECKS)


def test_every_question_fails() -> None:
    odd = raising(ZeroDivisionError("odd"))
    fields = dict.fromkeys(QUESTIONS, odd)
    findings = list(examine(replace(WORKING, **fields)))
    assert [finding.name for finding in findings] == list(CHECKS)
    assert not usable(findings)


def test_a_cache_kept_in_memory_is_said() -> None:
    environment = replace(
        WORKING,
        variables={"CUPY_CACHE_IN_MEMORY": "1"},
        try_to_write=raising(PermissionError(13, "Permission denied")),
    )
    finding = CHECKS["kernel cache"](environment)
    assert (finding.verdict, "every run compiles" in finding.found) == ("ok", True)


def test_writing_is_tried_where_the_cache_would_be(tmp_path: Path) -> None:
    facts.try_to_write(tmp_path / "not" / "there" / "yet")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(OSError):
        facts.try_to_write(file / "kernel_cache")


def test_the_text_has_an_arrow_for_each_problem() -> None:
    out = io.StringIO()
    report = doctor(out, replace(WORKING, headers=answering(None)))
    lines = out.getvalue().splitlines()
    (at,) = [i for i, line in enumerate(lines) if "  problem  " in line]
    assert lines[at].split()[:2] == ["headers", "problem"]
    assert lines[at + 1].strip() == '-> pip install "nvidia-cuda-runtime>=13,<14"'
    assert lines[-1].startswith("1 problem found")
    assert (report["usable"], report["healthy"]) == (True, False)


def test_the_command_on_this_machine() -> None:
    """Whatever this machine has: it ends, with JSON and the status that goes with it."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert [check["name"] for check in report["checks"]] == list(CHECKS)
    assert result.exit_code == (0 if report["healthy"] else 1)


@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_the_last_check_runs_a_kernel_and_reads_it_back() -> None:
    with installed(emulated_cupy()) as cupy:
        facts.run_kernel(0)
        assert facts.device_count() == 1
        assert facts.free_memory(0)[1] == cupy.cuda.Device(0).mem_info[1]
        environment = replace(WORKING, run_kernel=facts.run_kernel)
        assert usable(list(examine(environment)))
