"""What can be found out about a machine's GPUs, driver and CuPy.

`Environment` holds one question per field, so that a test can give a machine any of them to answer
wrongly. The driver is asked by itself and not through CuPy, because the best advice about a missing
CuPy depends on the driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

CUDA_SUCCESS = 0
# CUdevice_attribute, in NVIDIA's cuda.h
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver names it; `capability` is (9, 0) for sm_90, `memory` in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def arch(self) -> int:
        return 10 * self.capability[0] + self.capability[1]


@dataclass(frozen=True)
class Driver:
    """An NVIDIA driver that could be loaded.

    Args:
        version: of CUDA, the newest it can run: 13000 for 13.0.
        gpus: those that this process may use.
        error: what it said when it was asked for them, "" if nothing.
    """

    version: int
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Nvrtc:
    """NVIDIA's run-time compiler as CuPy loads it: (13, 1), and (75, 80, ...) for sm_75, sm_80."""

    version: tuple[int, int]
    architectures: tuple[int, ...]


def cupy_packages() -> dict[str, str]:
    """The installed distributions that put a module `cupy` into place, with their versions."""
    found = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name in ("cupy", "amd-cupy") or name.startswith(("cupy-cuda", "cupy-rocm")):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def gpu_in_slot() -> bool:
    """True when the machine has an NVIDIA GPU, with or without a driver; Linux and WSL only."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
            if vendor == "0x10de" and kind.startswith("0x03"):  # display controllers
                return True
    return False


def read_driver() -> Driver | None:
    """The driver and its GPUs, asked without CuPy; None where no driver is installed."""
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        missing = "No such file" in str(error) or "not find" in str(error).lower()
        return None if missing else Driver(0, error=str(error))
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    status = library.cuInit(0)
    if status != CUDA_SUCCESS:
        return Driver(version.value, error=_error_name(library, status))
    count = ctypes.c_int()
    status = library.cuDeviceGetCount(ctypes.byref(count))
    if status != CUDA_SUCCESS:
        return Driver(version.value, error=_error_name(library, status))
    return Driver(version.value, tuple(_gpu(library, i) for i in range(count.value)))


def _gpu(library: Any, index: int) -> Gpu:
    device, number = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    memory = ctypes.c_size_t()
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(), (capability[0], capability[1]), memory.value)


def _error_name(library: Any, status: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorName(status, ctypes.byref(text))
    return text.value.decode() if text.value else f"CUDA error {status}"


def import_cupy() -> Any:
    """CuPy; its warning about two packages is left out, because the doctor says it better."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("cupy")


def read_nvrtc() -> Nvrtc:
    """The compiler that CuPy loads; raises what CuPy raises where it finds none."""
    nvrtc = import_cupy().cuda.nvrtc
    major, minor = nvrtc.getVersion()
    return Nvrtc((major, minor), tuple(sorted(nvrtc.getSupportedArchs())))


def find_headers() -> str | None:
    """The folder of CUDA headers that CuPy takes; it refuses to compile without one."""
    found = importlib.import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
    return str(found) if found else None


def cache_folder() -> Path:
    """Where CuPy keeps compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def try_to_write(folder: Path) -> None:
    """Write a file where `folder` is or would be made; raises OSError where that cannot be done."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"cae-raw doctor")


def run_kernel(index: int) -> None:
    """Compile a kernel of this package for GPU `index`, run it, read back what it wrote."""
    from cae_raw.backends.cuda_backend import CudaBackend
    from cae_raw.backends.probe import check_kernel

    check_kernel(CudaBackend(import_cupy(), index))


def device_count() -> int:
    """How many GPUs CuPy sees."""
    return int(import_cupy().cuda.runtime.getDeviceCount())


def runtime_version() -> int:
    """The CUDA version that CuPy was built for: 13020 for 13.2."""
    return int(import_cupy().cuda.runtime.runtimeGetVersion())


def free_memory(index: int) -> tuple[int, int]:
    """Bytes of a GPU that are free, and all."""
    free, total = import_cupy().cuda.Device(index).mem_info
    return int(free), int(total)


@dataclass
class Environment:
    """The questions that the checks ask. Each may raise anything."""

    packages: Callable[[], Mapping[str, str]] = cupy_packages
    gpu_in_slot: Callable[[], bool] = gpu_in_slot
    driver: Callable[[], Driver | None] = read_driver
    cupy: Callable[[], Any] = import_cupy
    runtime_version: Callable[[], int] = runtime_version
    device_count: Callable[[], int] = device_count
    nvrtc: Callable[[], Nvrtc] = read_nvrtc
    headers: Callable[[], str | None] = find_headers
    cache_folder: Callable[[], Path] = cache_folder
    try_to_write: Callable[[Path], None] = try_to_write
    memory: Callable[[int], tuple[int, int]] = free_memory
    run_kernel: Callable[[int], None] = run_kernel
    variables: Mapping[str, str] = field(default_factory=lambda: os.environ)
