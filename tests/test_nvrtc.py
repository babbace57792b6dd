"""NVRTC without a GPU: cubins, logs and resources of small kernels, for every architecture."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from cae_raw.backends import nvrtc
from cae_raw.backends.nvrtc import (
    ARCHITECTURES,
    NvrtcError,
    NvrtcNotFoundError,
    Resources,
    compile_to_cubin,
    find_library,
    parse_log,
    supported_architectures,
)

needs_nvrtc = pytest.mark.skipif(find_library() is None, reason="no NVRTC library is installed")

REVERSE = """
extern "C" __global__ void __launch_bounds__(256) reverse(float* y)
{
    __shared__ float s[300];
    s[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[255 - threadIdx.x];
}
"""
# 64 values live at once do not fit into 32 registers.
CROWDED = """
extern "C" __global__ void crowded(const float* x, float* y)
{
    float a[64], s = 0;
    #pragma unroll
    for (int i = 0; i < 64; ++i) a[i] = x[i * threadIdx.x];
    for (int k = 0; k < 100; ++k) {
        #pragma unroll
        for (int i = 0; i < 64; ++i) { a[i] = a[i] * a[(i + 7) % 64] + s; s += a[i * 5 % 64]; }
    }
    #pragma unroll
    for (int i = 0; i < 64; ++i) y[i * blockDim.x + threadIdx.x] = a[i];
}
"""


REGISTER_COUNT, FRAME_SIZE = 0x2F, 0x11


def sections(cubin: bytes) -> dict[str, bytes]:
    """The content of each section of a 64-bit ELF file."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names_index = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    names = headers[names_index][4]
    result = {}
    for header in headers:
        start = names + header[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        result[name] = cubin[header[4] : header[4] + header[5]]
    return result


def binary_attribute(cubin: bytes, attribute: int) -> dict[str, int]:
    """An attribute of each kernel, as .nv.info states it: (4, attribute, 8, symbol, value)."""
    of = sections(cubin)
    values = {}
    info, at = of[".nv.info"], 0
    while at < len(info):
        kind, number, size = struct.unpack_from("<BBH", info, at)
        if number == attribute:
            symbol, value = struct.unpack_from("<II", info, at + 4)
            (start,) = struct.unpack_from("<I", of[".symtab"], symbol * 24)
            name = of[".strtab"][start : of[".strtab"].index(b"\0", start)].decode()
            values[name] = value
        at += 4 + (size if kind == 4 else 0)
    return values


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(arch: str) -> None:
    done = compile_to_cubin(REVERSE + CROWDED, arch)
    assert done.log == ""
    assert done.cubin[:4] == b"\x7fELF"
    assert set(done.resources) == {"reverse", "crowded"}
    reverse, crowded = done.resources["reverse"], done.resources["crowded"]
    assert reverse == Resources(registers=reverse.registers, static_shared=1200)
    assert 64 <= crowded.registers <= 128
    assert (crowded.static_shared, crowded.spill_stores, crowded.spill_loads) == (0, 0, 0)


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_the_report_agrees_with_the_binary(arch: str) -> None:
    done = compile_to_cubin(REVERSE + CROWDED, arch, ["--maxrregcount=40"])
    reported = done.resources.items()
    registers = {name: resources.registers for name, resources in reported}
    assert registers == binary_attribute(done.cubin, REGISTER_COUNT)
    stacks = {name: resources.stack for name, resources in reported}
    assert stacks == binary_attribute(done.cubin, FRAME_SIZE)
    assert stacks["crowded"] > 0


@needs_nvrtc
def test_spills_are_seen() -> None:
    done = compile_to_cubin(CROWDED, "90", ["--maxrregcount=32"])
    crowded = done.resources["crowded"]
    assert crowded.registers == 32
    assert crowded.spill_stores > 0
    assert crowded.spill_loads > 0
    assert crowded.stack > 0
    assert done.log == ""


@needs_nvrtc
def test_a_function_that_is_not_inlined_is_listed() -> None:
    code = """
    __device__ __noinline__ float deep(float x, int n) { return n ? deep(x * x, n - 1) + 1 : x; }
    extern "C" __global__ void k(float* y, int n) { y[0] = deep(y[0], n); }
    """
    done = compile_to_cubin(code, "sm_80")
    (other,) = set(done.resources) - {"k"}
    assert "deep" in other
    assert done.resources["k"].registers > 0


@needs_nvrtc
def test_defines_reach_the_source() -> None:
    code = 'extern "C" __global__ void k(float* y) { __shared__ float s[N]; s[threadIdx.x] = 1;' \
           " __syncthreads(); y[0] = s[threadIdx.x + 1]; }"  # fmt: skip
    for n in (64, 128):
        done = compile_to_cubin(code, "sm_86", [f"-DN={n}"])
        assert done.resources["k"].static_shared == 4 * n


@needs_nvrtc
def test_errors_carry_the_log() -> None:
    with pytest.raises(NvrtcError, match=r"rejects broken\.cu for sm_90") as caught:
        compile_to_cubin("\n__global__ void k() { nonsense; }", "sm_90", name="broken.cu")
    assert "broken.cu(2)" in caught.value.log
    assert 'identifier "nonsense" is undefined' in str(caught.value)
    with pytest.raises(NvrtcError, match="sm_11"):
        compile_to_cubin(REVERSE, "sm_11")
    with pytest.raises(NvrtcError, match="frobnicate"):
        compile_to_cubin(REVERSE, "sm_90", ["--frobnicate"])


@needs_nvrtc
def test_warnings_stay_in_the_log() -> None:
    done = compile_to_cubin('extern "C" __global__ void k() { int unused = 1; }', "sm_90")
    assert "unused" in done.log
    assert "ptxas" not in done.log


@needs_nvrtc
def test_headers_are_not_there() -> None:
    with pytest.raises(NvrtcError, match="cstdint"):
        compile_to_cubin("#include <cstdint>", "sm_90")


@needs_nvrtc
def test_library_architectures_and_version() -> None:
    assert nvrtc.version() >= (12, 0)
    architectures = supported_architectures()
    assert set(ARCHITECTURES) <= set(architectures) or nvrtc.version() < (12, 8)
    numbers = [int(name[3:]) for name in architectures]
    assert numbers == sorted(numbers)


def test_without_a_library_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "find_library", lambda: None)
    with pytest.raises(NvrtcNotFoundError, match="pip install nvidia-cuda-nvrtc") as caught:
        compile_to_cubin(REVERSE, "sm_90")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(nvrtc, "find_library", lambda: "/nowhere/libnvrtc.so.13")
    with pytest.raises(NvrtcNotFoundError, match="/nowhere/libnvrtc"):
        compile_to_cubin(REVERSE, "sm_90")


def test_the_wheels_are_found_without_pathfinder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    for name in ("CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    library = tmp_path / "nvidia" / "cuda_nvrtc" / "lib" / "libnvrtc.so.12"
    library.parent.mkdir(parents=True)
    for name in (library.name, "libnvrtc.alt.so.12", "libnvrtc-builtins.so.12.9"):
        library.with_name(name).write_bytes(b"")
    for loaded in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert find_library() in (str(library), *map(str, nvrtc._wheel_libraries()))
    assert library in list(nvrtc._wheel_libraries())


def test_parse_log() -> None:
    log = """kernel.cu(3): warning #177-D: variable "a" was declared but never referenced

ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_75'
ptxas info    : Function properties for k
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048+16 bytes smem, 376 bytes cmem[0]
ptxas warning : something
"""
    rest, resources = parse_log(log)
    assert resources == {"k": Resources(40, 2064, 16, 8, 12)}
    assert rest.splitlines() == [
        'kernel.cu(3): warning #177-D: variable "a" was declared but never referenced',
        "ptxas warning : something",
    ]
