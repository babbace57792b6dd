"""Builds a kernel's unchanged text into a shared library with g++, and calls it.

The text, the -D options, the shim, the compiler and its flags together name the library in a
cache folder, so that a kernel is compiled once per change of any of them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SHIM = FOLDER / "cuda_emulator.h"
MAX_THREADS = 1024
STACK_BYTES = 128 * 1024

# Undefined behaviour that a C++ compiler can find by itself. The shim answers these checks, so that
# no sanitizer library is needed.
UNDEFINED = (
    "alignment,bounds,null,shift,signed-integer-overflow,integer-divide-by-zero,bool,return,"
    "unreachable"
)


class EmulatorError(RuntimeError):
    """A launch did something that CUDA forbids or leaves undefined.

    Attributes: ``kernel`` its name, ``block`` and ``thread`` the indices (x, y, z) where it was
    noticed, each None where it does not apply.
    """

    def __init__(
        self,
        message: str,
        kernel: str | None = None,
        block: tuple[int, int, int] | None = None,
        thread: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.kernel = kernel
        self.block = block
        self.thread = thread


class CompileError(EmulatorError):
    """g++ did not accept the kernel text; the message is the compiler's."""


class Launch(ctypes.Structure):
    """What a launch needs: EmuLaunch in cuda_emulator.h."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("flush_denormals", ctypes.c_uint),
        ("seed", ctypes.c_ulonglong),
        ("seconds", ctypes.c_longlong),
        ("stacks", ctypes.c_void_p),
        ("stack_bytes", ctypes.c_ulonglong),
        ("message", ctypes.c_char_p),
        ("message_bytes", ctypes.c_ulonglong),
        ("error_block", ctypes.c_uint * 3),
        ("error_thread", ctypes.c_uint * 3),
    ]


@functools.cache
def compiler() -> str | None:
    """The path of the C++ compiler: ``CAE_RAW_EMULATOR_CXX`` or g++; None where there is none."""
    return shutil.which(os.environ.get("CAE_RAW_EMULATOR_CXX", "g++"))


@functools.cache
def _compiler_version() -> str:
    command = [str(compiler()), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def _own_text() -> str:
    """What a library depends on besides its kernel: the shim and this file."""
    files = [*sorted(FOLDER.glob("*.h")), Path(__file__)]
    return "\0".join(file.read_text() for file in files)


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    """-mfma where the processor has it: fmaf() then is one instruction, with the same result."""
    if platform.machine() == "x86_64":
        try:
            if re.search(r"^flags\s*:.*\bfma\b", Path("/proc/cpuinfo").read_text(), re.M):
                return ("-mfma",)
        except OSError:
            pass
    return ()


def cache_folder() -> Path:
    """``CAE_RAW_EMULATOR_CACHE``, else a folder of this user's own among the temporary files."""
    chosen = os.environ.get("CAE_RAW_EMULATOR_CACHE")
    if chosen:
        return Path(chosen)
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"cae-raw-emulator-{user}"


@functools.cache
def _stacks() -> int:
    """Address of the stacks of one block's threads, shared by all launches of this process."""
    # The first few stay unused, so that an overflow of the lowest stack harms nothing else.
    unused = 8 * STACK_BYTES
    memory = mmap.mmap(-1, unused + MAX_THREADS * STACK_BYTES)
    _stacks.memory = memory  # type: ignore[attr-defined]  # kept alive with the function
    return ctypes.addressof(ctypes.c_char.from_buffer(memory)) + unused


_ALIGN = r"(?:(?:__align__|alignas)\s*\([^()]*\)\s*)?"
_EXTERN_SHARED = re.compile(
    rf"\bextern\s+__shared__\s+{_ALIGN}([\w:<>\s]+?)\s*{_ALIGN}\b(\w+)\s*\[\s*\]\s*;"
)
_GLOBAL = re.compile(r"__global__\b")
_NAME = re.compile(r"(\w+)\s*\(")
_PASSED = re.compile(r"-[DU]\w+(=.*)?", re.S)
# What NVRTC knows and a CPU compiler has no use for.
_IGNORED = re.compile(
    r"--?(std=|ftz|fmad|prec-|use_fast_math|lineinfo|generate-line-info|device-|default-device|"
    r"maxrregcount|arch|gpu-architecture|restrict|extra-device|I|Xptxas|ptxas-options|diag-|w$)"
)


def define_options(options: Sequence[str]) -> list[str]:
    """The options a CPU compiler needs of NVRTC's; raises on one that NVRTC would not know."""
    kept = []
    for option in options:
        if _PASSED.fullmatch(option):
            kept.append(option)
        elif not _IGNORED.match(option):
            raise CompileError(f"unknown compiler option {option!r}")
    return kept


def _define_lines(defines: Sequence[str]) -> str:
    lines = []
    for option in defines:
        name, _, value = option[2:].partition("=")
        if option.startswith("-U"):
            lines.append(f"#undef {name}\n")
        else:
            lines.append(f"#define {name} {value if '=' in option else 1}\n")
    return "".join(lines)


def _undefine_lines(defines: Sequence[str]) -> str:
    return "".join(f"#undef {option[2:].partition('=')[0]}\n" for option in defines)


def dynamic_shared_as_pointer(source: str) -> str:
    """``extern __shared__ T name[];`` has no C++ spelling; the line becomes a pointer's."""
    return _EXTERN_SHARED.sub(r"EMU_DYNAMIC_SHARED(\1, \2);", source)


def find_kernels(preprocessed: str) -> dict[str, str]:
    """Name of each ``extern "C" __global__`` function, and its launch bounds ("" where none)."""
    kernels: dict[str, str] = {}
    for match in _GLOBAL.finditer(preprocessed):
        if preprocessed[: match.start()].rstrip().endswith(">"):
            continue  # a template, reachable only through its mangled name
        bounds, at = "", match.end()
        while name := _NAME.search(preprocessed, at):
            if name.group(1) not in ("__launch_bounds__", "__attribute__", "__align__"):
                kernels[name.group(1)] = bounds
                break
            depth, at = 1, name.end()
            while depth and at < len(preprocessed):
                depth += {"(": 1, ")": -1}.get(preprocessed[at], 0)
                at += 1
            if name.group(1) == "__launch_bounds__":
                bounds = preprocessed[name.end() : at - 1]
    return kernels


@dataclass(frozen=True)
class KernelInfo:
    """One entry point. ``signature``: a NumPy type code per argument, see Code in the shim."""

    signature: tuple[str, ...]
    max_threads: int
    static_shared: int


class Library:
    """A compiled translation unit."""

    def __init__(self, path: Path, names: Sequence[str], static_shared: dict[str, int]) -> None:
        self.path = path
        self._library = ctypes.PyDLL(str(path))  # keeps the GIL: the emulator has one state
        self.kernels: dict[str, KernelInfo] = {}
        for name in names:
            signature = getattr(self._library, f"emu_signature_{name}")
            signature.restype = ctypes.c_char_p
            bounds = getattr(self._library, f"emu_bounds_{name}")()
            self.kernels[name] = KernelInfo(
                tuple(signature().decode().split()),
                min(bounds or MAX_THREADS, MAX_THREADS),
                static_shared.get(name, 0),
            )

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        pointers: Sequence[int],
        shared_bytes: int,
        seed: int,
        flush_denormals: bool = True,
        seconds: int = 300,
    ) -> None:
        """Run kernel ``name``; ``pointers``: the address of each argument's value.

        Raises EmulatorError for what the kernel did wrong.
        """
        message = ctypes.create_string_buffer(8192)
        launch = Launch(
            grid=grid,
            block=block,
            shared_bytes=shared_bytes,
            flush_denormals=flush_denormals,
            seed=seed % 2**64,
            seconds=seconds,
            stacks=_stacks(),
            stack_bytes=STACK_BYTES,
            message=ctypes.cast(message, ctypes.c_char_p),
            message_bytes=len(message),
        )
        arguments = (ctypes.c_void_p * max(len(pointers), 1))(*pointers)
        if getattr(self._library, f"emu_launch_{name}")(ctypes.byref(launch), arguments):
            at, thread = tuple(launch.error_block), tuple(launch.error_thread)
            text = message.value.decode(errors="replace").partition("Shadow bytes")[0].strip("= \n")
            raise EmulatorError(f"{name}, block {at}, thread {thread}: {text}", name, at, thread)


def flags(sanitize: str | None) -> list[str]:
    """The g++ flags of a build; ``sanitize``: None, or "undefined" and/or "address" by commas."""
    wanted = set((sanitize or "").split(",")) - {""}
    if unknown := wanted - {"undefined", "address"}:
        raise ValueError(f"unknown sanitizer {sorted(unknown)}: choose of address, undefined")
    result = [
        "-std=c++17",
        "-O2",
        "-fno-strict-aliasing",
        "-fPIC",
        "-shared",
        "-w",
        "-fno-exceptions",
        "-fno-rtti",
    ]
    result += ["-fvisibility=hidden", "-fno-stack-protector", "-fcf-protection=none"]
    # Neither contraction nor reassociation: a result must not depend on where it was compiled.
    result += ["-ffp-contract=off", "-fno-math-errno", *_machine_flags()]
    if platform.machine() != "x86_64":
        result.remove("-fcf-protection=none")
    if "undefined" in wanted:
        result += [f"-fsanitize={UNDEFINED}", "-fno-sanitize-recover=return,unreachable"]
    if "address" in wanted:
        result += ["-fsanitize=address", "-fsanitize-recover=address", "-g1"]
        result += ["-fsanitize-sections=emu_shared", "--param=asan-stack=1"]
        result += ["-fno-omit-frame-pointer"]
    return result


@functools.cache
def build(source: str, options: tuple[str, ...], sanitize: str | None = "undefined") -> Library:
    """Compile ``source`` (or find it compiled) and load it. Raises CompileError."""
    cxx = compiler()
    if cxx is None:
        raise CompileError("no C++ compiler: install g++ or set CAE_RAW_EMULATOR_CXX")
    defines = define_options(options)
    build_flags = flags(sanitize)
    parts = [source, _own_text(), _compiler_version(), *defines, "", *build_flags]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise CompileError(f"{folder} belongs to another user: set CAE_RAW_EMULATOR_CACHE")
    library, listing = folder / f"{key}.so", folder / f"{key}.txt"
    if not (library.exists() and listing.exists()):
        _compile(cxx, source, defines, build_flags, library, listing)
    names: list[str] = []
    static_shared: dict[str, int] = {}
    for line in listing.read_text().splitlines():
        name, size = line.split()
        names.append(name)
        static_shared[name] = int(size)
    return Library(library, names, static_shared)


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"g++ rejects the kernel:\n{done.stderr}")
    return done.stdout


def _compile(
    cxx: str, source: str, defines: list[str], build_flags: list[str], library: Path, listing: Path
) -> None:
    marked = ["-E", "-P", "-x", "c++", "-w", "-DCAE_EMULATED=1", *defines, "-"]
    kernels = find_kernels(_run([cxx, *marked], source))
    # The unnamed namespace gives every shared array internal linkage, so that also those of
    # templates can lie together in one section.
    # The options become lines after the shim, whose own names a -DC=3 must not change.
    limits = "".join(
        f"constexpr int emu_bounds_of_{name} = {f'emu::first({bounds})' if bounds else 0};\n"
        for name, bounds in kernels.items()
    )
    exports = "".join(f"EMU_EXPORT({name})\n" for name in kernels)
    text = (
        f"{_define_lines(defines)}namespace {{\n"
        f'#line 1 "kernel.cu"\n{dynamic_shared_as_pointer(source)}\n'
        f'#line 1 "exports"\n{limits}}}\n{_undefine_lines(defines)}{exports}'
    )
    unfinished = library.with_suffix(f".{os.getpid()}.so")
    try:
        command = [cxx, *build_flags, "-include", str(SHIM), "-x", "c++", "-"]
        _run([*command, "-o", str(unfinished)], text)
        shared = _static_shared(unfinished)
        lines = [f"{name} {shared.get(name, 0)}" for name in kernels]
        part = listing.with_suffix(f".{os.getpid()}.part")
        part.write_text("\n".join(lines))
        os.replace(part, listing)
        os.replace(unfinished, library)
    finally:
        unfinished.unlink(missing_ok=True)


def _static_shared(library: Path) -> dict[str, int]:
    """Bytes of the shared arrays declared in each kernel's own body, by the symbols' names."""
    nm = shutil.which("nm")
    if nm is None:
        return {}
    output = subprocess.run([nm, "-S", str(library)], capture_output=True, text=True, check=False)
    totals: dict[str, int] = {}
    for line in output.stdout.splitlines():
        if match := re.match(r"\w+ (\w+) [dDbB] _ZZ(?:N12_GLOBAL__N_1)?L?(\d+)(\w+)", line):
            name = match.group(3)[: int(match.group(2))]
            totals[name] = totals.get(name, 0) + int(match.group(1), 16)
    return totals
