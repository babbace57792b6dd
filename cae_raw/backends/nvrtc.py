"""NVIDIA's run-time compiler by itself: a kernel's cubin and its resources, without a GPU or CuPy.

Training compiles through CuPy. This module is for looking at kernels where there may be no GPU: do
they compile for every architecture, without a word in the log, and in how many registers.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cae_raw.errors import InputError

# Turing to Blackwell: every architecture that CUDA 13 compiles for, without its small variants.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

# What CuPy adds to every RawModule; without them other code would be measured than runs.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
DEFAULT_STANDARD = "-std=c++17"


class NvrtcNotFoundError(InputError):
    """No NVRTC library on this machine."""


class NvrtcError(RuntimeError):
    """NVRTC refused. ``log`` is all it said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\n{log}" if log else message)
        self.log = log


@dataclass(frozen=True)
class Resources:
    """What one kernel needs: registers per thread, bytes of the rest.

    ``static_shared`` per block; ``stack`` per thread, spilled registers included; ``spill_stores``
    and ``spill_loads`` the bytes that spilling instructions move per thread if each runs once.
    """

    registers: int = 0
    static_shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0


@dataclass(frozen=True)
class Compiled:
    """``resources`` by kernel name; a device function that was not inlined has an entry too.

    ``log`` holds what the compiler had to say besides the resources: empty if all is well.
    """

    cubin: bytes
    log: str
    resources: dict[str, Resources]


def _wheel_libraries() -> Iterator[Path]:
    """Where the wheels nvidia-cuda-nvrtc (CUDA 13) and nvidia-cuda-nvrtc-cu12 put the library."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for part in ("cu13", "cuda_nvrtc"):
            for pattern in ("lib/libnvrtc.so.*", "bin/**/nvrtc64_*.dll"):
                yield from sorted(
                    p for p in Path(folder, part).glob(pattern) if ".alt." not in p.name
                )


def _toolkit_libraries() -> Iterator[Path]:
    """Where an installed CUDA toolkit puts it."""
    roots = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME")]
    for root in [*filter(None, roots), "/usr/local/cuda"]:
        for pattern in ("lib64/libnvrtc.so*", "targets/*/lib/libnvrtc.so*", "bin/nvrtc64_*.dll"):
            yield from sorted(Path(root).glob(pattern))


def find_library() -> str | None:
    """The NVRTC library to load, or None.

    The one CuPy 14 would take comes first (cuda.pathfinder), then the wheels, then the system's.
    """
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        found = pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path
        if found:
            return str(found)
    except Exception:  # not installed, or nothing found: the class of its error varies
        pass
    for path in (*_wheel_libraries(), *_toolkit_libraries()):
        return str(path)
    return ctypes.util.find_library("nvrtc")


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _library() -> ctypes.CDLL:
    path = find_library()
    if path is None:
        raise NvrtcNotFoundError(
            "no NVRTC library found: pip install nvidia-cuda-nvrtc (CUDA 13) "
            "or nvidia-cuda-nvrtc-cu12 (CUDA 12)"
        )
    try:
        return _load(path)
    except OSError as error:
        raise NvrtcNotFoundError(f"{path} cannot be loaded: {error}") from None


def _check(library: ctypes.CDLL, status: int, what: str) -> None:
    if status:
        name = library.nvrtcGetErrorString(status).decode()
        raise NvrtcError(f"NVRTC: {what}: {name}")


def version() -> tuple[int, int]:
    """NVRTC's version, such as (13, 1)."""
    library = _library()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "version")
    return major.value, minor.value


def supported_architectures() -> tuple[str, ...]:
    """The architectures that this NVRTC compiles for, such as "sm_90", in ascending order."""
    library = _library()
    count = ctypes.c_int()
    _check(library, library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "architectures")
    numbers = (ctypes.c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(numbers), "architectures")
    return tuple(f"sm_{number}" for number in sorted(numbers))


def compile_to_cubin(
    source: str, arch: str, options: Sequence[str] = (), name: str = "kernel.cu"
) -> Compiled:
    """Compile kernel text, its includes already expanded, for one architecture ("sm_90" or "90").

    ``options`` are added to those CuPy always gives; ``name`` stands in the log. Raises NvrtcError
    with the whole log if the source is wrong, NvrtcNotFoundError if there is no library.
    """
    library = _library()
    architecture = arch if arch.startswith(("sm_", "compute_")) else f"sm_{arch}"
    standard = () if any("std=" in option for option in options) else (DEFAULT_STANDARD,)
    every = (
        f"--gpu-architecture={architecture}",
        *standard,
        *options,
        *CUPY_OPTIONS,
        "--ptxas-options=-v",
    )
    program = ctypes.c_void_p()
    _check(
        library,
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), 0, None, None
        ),
        "create a program",
    )
    try:
        texts = (ctypes.c_char_p * len(every))(*[option.encode() for option in every])
        status = library.nvrtcCompileProgram(program, len(every), texts)
        log = _bytes(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if status:
            kind = library.nvrtcGetErrorString(status).decode()
            raise NvrtcError(f"NVRTC rejects {name} for {architecture}: {kind}", log.strip())
        cubin = _bytes(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    rest, resources = parse_log(log)
    return Compiled(cubin, rest, resources)


def _bytes(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    get_size = getattr(library, f"nvrtcGet{what}Size")
    _check(library, get_size(program, ctypes.byref(size)), f"size of the {what}")
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+(\d+))? bytes smem")


def parse_log(log: str) -> tuple[str, dict[str, Resources]]:
    """Split a log into what is not a resource report, and the report by function name."""
    found: dict[str, Resources] = {}
    rest: list[str] = []
    entry = function = ""
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry = match.group(1)
        elif match := _FUNCTION.search(line):
            function = match.group(1)
        elif match := _STACK.search(line):
            stack, stores, loads = map(int, match.groups())
            old = found.get(function, Resources())
            found[function] = replace(old, stack=stack, spill_stores=stores, spill_loads=loads)
        elif match := _USED.search(line):
            shared = _SHARED.search(line)
            found[entry] = replace(
                found.get(entry, Resources()),
                registers=int(match.group(1)),
                static_shared=sum(int(n or 0) for n in shared.groups()) if shared else 0,
            )
        elif line.strip() and not line.startswith("ptxas info"):
            rest.append(line)
    return "\n".join(rest), found
