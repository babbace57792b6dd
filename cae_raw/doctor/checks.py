"""The checks, in the order in which their findings are printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from cae_raw.doctor.environment import Driver, Environment, Gpu

Verdict = Literal["ok", "problem", "skipped"]

OLDEST_CUPY = (14, 2)
LITTLE_MEMORY = 512 << 20
REPORT = "mend what else is found first; if that is nothing, report the output of this command"
# The first drivers for each major version of CUDA, from NVIDIA's release notes.
FIRST_DRIVER = {12: "525.60", 13: "580.65"}
OLDEST_ARCH = {12: 50, 13: 75}


@dataclass(frozen=True)
class Finding:
    """What a check found. `remedy` is a command or one sentence, "" where nothing needs mending."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


Check = Callable[[Environment], Finding]


def examine(environment: Environment | None = None) -> Iterator[Finding]:
    """The findings, one by one as they are made. Never raises: a check that fails is a finding."""
    environment = environment or Environment()
    for name, check in CHECKS.items():
        try:
            yield check(environment)
        except Exception as error:  # a broken installation can raise anything anywhere
            found = f"the check itself failed: {type(error).__name__}: {in_one_line(error)}"
            yield Finding(name, "problem", found, REPORT)


def healthy(findings: list[Finding]) -> bool:
    """True when nothing needs mending; a machine without a GPU is healthy."""
    return all(finding.verdict != "problem" for finding in findings)


def usable(findings: list[Finding]) -> bool:
    """True when a kernel ran on every GPU."""
    return any(finding.name == "kernel" and finding.verdict == "ok" for finding in findings)


def in_one_line(error: BaseException) -> str:
    """An error as its first 200 characters, without line breaks."""
    text = " ".join(str(error).split())
    return (text if len(text) <= 200 else text[:197] + "...") or type(error).__name__


def dotted(version: int) -> str:
    """13020 as 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"


# --- what advice depends on -------------------------------------------------------------------


def _driver(environment: Environment) -> Driver | None:
    try:
        return environment.driver()
    except Exception:  # the check "driver" tells
        return None


def _gpus(environment: Environment) -> tuple[Gpu, ...]:
    driver = _driver(environment)
    return driver.gpus if driver else ()


def _cuda_of_cupy(environment: Environment) -> int | None:
    """The major version of CUDA that the installed CuPy is for."""
    try:
        return environment.runtime_version() // 1000
    except Exception:  # CuPy does not import: its package's name tells
        named = [re.match(r"cupy-cuda(\d\d)", name) for name in _packages(environment)]
        return max((int(match.group(1)) for match in named if match), default=None)


def _packages(environment: Environment) -> list[str]:
    try:
        return list(environment.packages())
    except Exception:  # the check "cupy" tells
        return []


def wanted_cuda(environment: Environment) -> int:
    """The major version of CUDA that suits driver and GPUs: 13 if both can, else 12."""
    driver = _driver(environment)
    old_driver = driver is not None and 0 < driver.version < 13000
    old_gpu = any(gpu.arch < OLDEST_ARCH[13] for gpu in _gpus(environment))
    return 12 if old_driver or old_gpu else 13


def install(environment: Environment) -> str:
    """The command that replaces whatever CuPy is there by the right one."""
    command = f'pip install --upgrade "cae-raw[cuda{wanted_cuda(environment)}]"'
    names = _packages(environment)
    wrong = [name for name in names if name != f"cupy-cuda{wanted_cuda(environment)}x"]
    # Two packages own the same files: with one of them removed, the other one is broken.
    if wrong or len(names) > 1:
        return f"pip uninstall -y {' '.join(names)} && {command}"
    return command


def nvidia_wheel(environment: Environment, what: str) -> str:
    """The command that installs one of NVIDIA's wheels to go with the installed CuPy."""
    major = _cuda_of_cupy(environment) or wanted_cuda(environment)
    name = f"nvidia-cuda-{what}"
    return f"pip install {name}-cu12" if major == 12 else f'pip install "{name}>=13,<14"'


# --- the checks -------------------------------------------------------------------------------


def check_driver(environment: Environment) -> Finding:
    driver = environment.driver()
    if driver is None:
        if environment.gpu_in_slot():
            return Finding(
                "driver",
                "problem",
                "this machine has an NVIDIA GPU, but no driver for it can be loaded",
                "install NVIDIA's driver until `nvidia-smi` lists the GPU; in a container: start "
                "it with --gpus all (NVIDIA container toolkit)",
            )
        return Finding("driver", "skipped", "no NVIDIA GPU driver found; the CPU is used")
    if driver.version == 0:
        return Finding(
            "driver",
            "problem",
            f"the driver cannot be loaded: {driver.error}",
            "install NVIDIA's driver anew and restart, until `nvidia-smi` lists the GPU",
        )
    found = f"runs CUDA up to {dotted(driver.version)}"
    if driver.version < 12000:
        return Finding(
            "driver",
            "problem",
            f"{found}, but CuPy needs CUDA 12 or 13",
            f"update NVIDIA's driver to {FIRST_DRIVER[13]} or newer "
            f"({FIRST_DRIVER[12]} for CUDA 12)",
        )
    return Finding("driver", "ok", found)


def check_gpu(environment: Environment) -> Finding:
    driver = environment.driver()
    if driver is None:
        return Finding("gpu", "skipped", "needs a driver")
    if not driver.gpus:
        found = "the driver shows no GPU" + (f": {driver.error}" if driver.error else "")
        visible = environment.variables.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return Finding(
                "gpu",
                "problem",
                f"{found}; CUDA_VISIBLE_DEVICES is {visible!r}",
                "unset CUDA_VISIBLE_DEVICES",
            )
        remedy = "restart after a driver update; in a container: start it with --gpus all"
        return Finding("gpu", "problem", found, f"{remedy}; until `nvidia-smi` lists the GPU")
    found = "; ".join(
        f"cuda:{i} {gpu.name}, sm_{gpu.arch}, {gpu.memory / 2**30:.0f} GiB"
        for i, gpu in enumerate(driver.gpus)
    )
    return Finding("gpu", "ok", found)


def check_cupy(environment: Environment) -> Finding:
    packages = environment.packages()
    try:
        cupy = environment.cupy()
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            if not _driver(environment) and not packages:
                return Finding("cupy", "skipped", "not installed, and not needed without a GPU")
            return Finding("cupy", "problem", "not installed", install(environment))
        return Finding("cupy", "problem", in_one_line(error), install(environment))
    except Exception as error:
        found = f"installed, but cannot be imported: {in_one_line(error)}"
        return Finding("cupy", "problem", found, install(environment))
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return Finding("cupy", "ok", listed or f"CuPy {cupy.__version__}, not from a wheel")


def check_single(environment: Environment) -> Finding:
    packages = environment.packages()
    if not packages:
        return Finding("one cupy", "skipped", "no CuPy package is installed")
    if len(packages) > 1:
        found = f"{len(packages)} packages own the module cupy: {', '.join(packages)}"
        return Finding("one cupy", "problem", found, install(environment))
    rocm = [name for name in packages if "rocm" in name or name == "amd-cupy"]
    if rocm:
        found = f"{rocm[0]} is for AMD GPUs; the kernels of cae-raw are CUDA"
        return Finding("one cupy", "problem", found, install(environment))
    return Finding("one cupy", "ok", "a single package")


def check_version(environment: Environment) -> Finding:
    try:
        version = str(environment.cupy().__version__)
    except Exception:
        return Finding("cupy version", "skipped", "needs CuPy")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST_CUPY:
        oldest = ".".join(map(str, OLDEST_CUPY))
        found = f"{version} is older than {oldest}"
        return Finding("cupy version", "problem", found, install(environment))
    return Finding("cupy version", "ok", version)


def check_runtime(environment: Environment) -> Finding:
    """A driver runs every CUDA of its own major version and of older ones, not of newer ones."""
    driver, wheel = environment.driver(), _cuda_of_cupy(environment)
    if driver is None or driver.version == 0 or wheel is None:
        return Finding("runtime", "skipped", "needs CuPy" if driver else "needs a driver")
    found = f"CuPy is for CUDA {wheel}, the driver runs up to {dotted(driver.version)}"
    if wheel <= driver.version // 1000:
        return Finding("runtime", "ok", found)
    update = f"update NVIDIA's driver to {FIRST_DRIVER.get(wheel, 'the newest')} or newer"
    if driver.version < 12000:
        return Finding("runtime", "problem", found, update)
    return Finding("runtime", "problem", found, f"{install(environment)}  (or {update})")


def check_nvrtc(environment: Environment) -> Finding:
    try:
        environment.cupy()
    except Exception:
        return Finding("nvrtc", "skipped", "needs CuPy")
    try:
        nvrtc = environment.nvrtc()
    except Exception as error:
        found = f"CuPy finds no run-time compiler: {in_one_line(error)}"
        return Finding("nvrtc", "problem", found, nvidia_wheel(environment, "nvrtc"))
    found = "{}.{}, for sm_{} to sm_{}".format(
        *nvrtc.version, min(nvrtc.architectures), max(nvrtc.architectures)
    )
    return Finding("nvrtc", "ok", found)


def check_architecture(environment: Environment) -> Finding:
    gpus = _gpus(environment)
    if not gpus:
        return Finding("architecture", "skipped", "needs a GPU")
    try:
        nvrtc = environment.nvrtc()
    except Exception:
        return Finding("architecture", "skipped", "needs the run-time compiler")
    for gpu in gpus:
        if gpu.arch in nvrtc.architectures:
            continue
        found = f"NVRTC {nvrtc.version[0]}.{nvrtc.version[1]} cannot compile for sm_{gpu.arch}"
        found += f" ({gpu.name})"
        if gpu.arch < OLDEST_ARCH[12]:
            remedy = "this GPU is too old for CUDA 12: use --device cpu"
        elif gpu.arch < min(nvrtc.architectures):
            remedy = install(environment)
        else:
            remedy = nvidia_wheel(environment, "nvrtc").replace("install", "install --upgrade", 1)
        return Finding("architecture", "problem", found, remedy)
    listed = ", ".join(sorted({f"sm_{gpu.arch}" for gpu in gpus}))
    return Finding("architecture", "ok", f"NVRTC compiles for {listed}")


def check_headers(environment: Environment) -> Finding:
    try:
        environment.cupy()
    except Exception:
        return Finding("headers", "skipped", "needs CuPy")
    try:
        folder = environment.headers()
        found = "CuPy compiles nothing without CUDA's headers, and finds none"
    except Exception as error:
        folder, found = None, f"CUDA's headers cannot be looked for: {in_one_line(error)}"
    if folder is None:
        return Finding("headers", "problem", found, nvidia_wheel(environment, "runtime"))
    return Finding("headers", "ok", folder)


def check_cache(environment: Environment) -> Finding:
    if not _packages(environment):
        return Finding("kernel cache", "skipped", "needs CuPy")
    if environment.variables.get("CUPY_CACHE_IN_MEMORY", "0") not in ("", "0"):
        found = "CUPY_CACHE_IN_MEMORY is set: every run compiles its kernels again"
        return Finding("kernel cache", "ok", found)
    folder = environment.cache_folder()
    try:
        environment.try_to_write(folder)
    except OSError as error:
        return Finding(
            "kernel cache",
            "problem",
            f"{folder} cannot be written: {error.strerror or error}",
            "export CUPY_CACHE_DIR=FOLDER with a folder that can be written",
        )
    return Finding("kernel cache", "ok", str(folder))


def check_memory(environment: Environment) -> Finding:
    try:
        count = environment.device_count()
    except Exception:
        return Finding("memory", "skipped", "needs a GPU that CuPy can use")
    free = [environment.memory(i) for i in range(count)]
    found = "; ".join(
        f"cuda:{i} {f / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        for i, (f, total) in enumerate(free)
    )
    if any(f < LITTLE_MEMORY for f, _ in free):
        remedy = "end what holds the memory: `nvidia-smi` lists the processes"
        return Finding("memory", "problem", found, remedy)
    return Finding("memory", "ok", found) if free else Finding("memory", "skipped", "no GPU")


def check_kernel(environment: Environment) -> Finding:
    try:
        count = environment.device_count()
    except ModuleNotFoundError:
        return Finding("kernel", "skipped", "needs CuPy")
    except Exception as error:
        if not _gpus(environment):
            return Finding("kernel", "skipped", "needs a GPU")
        return Finding("kernel", "problem", in_one_line(error), remedy_for(error, environment))
    for i in range(count):
        try:
            environment.run_kernel(i)
        except Exception as error:
            found = f"cuda:{i} did not run a kernel: {in_one_line(error)}"
            return Finding("kernel", "problem", found, remedy_for(error, environment))
    if count == 0 and _gpus(environment):
        return Finding("kernel", "problem", "the driver shows a GPU, CuPy does not", REPORT)
    if count == 0:
        return Finding("kernel", "skipped", "needs a GPU")
    return Finding("kernel", "ok", f"compiled, run and read back on {count} GPU(s)")


def remedy_for(error: Exception, environment: Environment) -> str:
    """What mends the errors that a first kernel is known to end with."""
    text = str(error)
    if "InsufficientDriver" in text:
        return f"{install(environment)}  (or update NVIDIA's driver)"
    if "CUDA headers" in text:
        return nvidia_wheel(environment, "runtime")
    if "nvrtc" in text.lower() and ("load" in text or "found" in text):
        return nvidia_wheel(environment, "nvrtc")
    if "NO_BINARY_FOR_GPU" in text or "NoKernelImage" in text or "gpu-architecture" in text:
        return install(environment)
    if "UNSUPPORTED_PTX_VERSION" in text:
        return "unset CUPY_COMPILE_WITH_PTX, or update NVIDIA's driver"
    if "out of memory" in text.lower() or isinstance(error, MemoryError):
        return "end what holds the GPU's memory: `nvidia-smi` lists the processes"
    if isinstance(error, OSError):
        return "export CUPY_CACHE_DIR=FOLDER with a folder that can be written"
    return REPORT


CHECKS: dict[str, Check] = {
    "driver": check_driver,
    "gpu": check_gpu,
    "cupy": check_cupy,
    "one cupy": check_single,
    "cupy version": check_version,
    "runtime": check_runtime,
    "nvrtc": check_nvrtc,
    "architecture": check_architecture,
    "headers": check_headers,
    "kernel cache": check_cache,
    "memory": check_memory,
    "kernel": check_kernel,
}
