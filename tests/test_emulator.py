"""The kernel emulator itself: it runs right kernels, and it objects to each kind of wrong one."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import (
    CompileError,
    EmulatorError,
    OutOfMemoryError,
    available,
    check_order_independence,
    check_red_zones,
    emulated_cupy,
    installed,
    launch_count,
    run_sanitized,
    sanitizer_library,
)

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

# AddressSanitizer speaks up before the red zones are looked at.
UNDER_ASAN = "address" in os.environ.get("CAE_RAW_EMULATOR_SANITIZE", "")
without_asan = pytest.mark.skipif(UNDER_ASAN, reason="AddressSanitizer watches the red zones")

SCALE = """
extern "C" __global__ void scale(const float* x, float* y, int n, float a)
{
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n;
         i += (long long)gridDim.x * blockDim.x)
        y[i] = a * x[i];
}
"""


@pytest.fixture
def cp() -> types.ModuleType:
    return emulated_cupy()


def run(
    cp: types.ModuleType,
    code: str,
    args: tuple[Any, ...],
    *,
    block: tuple[int, ...] = (64,),
    grid: tuple[int, ...] = (1,),
    options: tuple[str, ...] = (),
    shared_mem: int = 0,
) -> None:
    """Launch the kernel ``k`` of ``code``."""
    kernel = cp.RawModule(code=code, options=options).get_function("k")
    kernel(grid, block, args, shared_mem=shared_mem)


def kernel(body: str, parameters: str = "float* y") -> str:
    """A kernel ``k`` around ``body``; ``t`` is the thread's number in the block."""
    return f'extern "C" __global__ void k({parameters}) {{ int t = threadIdx.x; {body} }}'


# ---- right kernels


@pytest.mark.parametrize("grid", [1, 3, 100])
@pytest.mark.parametrize("n", [0, 1, 31, 1000])
def test_grid_stride_loop(cp: types.ModuleType, n: int, grid: int) -> None:
    host = np.arange(n, dtype=np.float32)
    x, y = cp.asarray(host), cp.empty(n, np.float32)
    scale = cp.RawModule(code=SCALE).get_function("scale")
    before = launch_count()
    scale((grid,), (32,), (x, y, np.int32(n), np.float32(3)))
    assert launch_count() == before + 1
    np.testing.assert_array_equal(y.get(), 3 * host)
    np.testing.assert_array_equal(x.get(), host)


def test_indices_cover_the_whole_grid(cp: types.ModuleType) -> None:
    code = """
    extern "C" __global__ void k(int* y)
    {
        int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        int i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
        y[i] = i + 1000 * warpSize;
    }"""
    y = cp.empty(2 * 3 * 4 * 5 * 3 * 2, np.int32)
    run(cp, code, (y,), grid=(2, 3, 4), block=(5, 3, 2))
    np.testing.assert_array_equal(y.get(), np.arange(720) + 32000)


def test_shared_memory_in_a_template_dynamic_shared_memory_and_defines(
    cp: types.ModuleType,
) -> None:
    code = """
    template <int SIZE> __device__ float total(float v)
    {
        __shared__ float part[SIZE];
        part[threadIdx.x] = v;
        for (int half = SIZE / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        }
        __syncthreads();
        return part[0];
    }
    extern "C" __global__ void __launch_bounds__(2 * N) k(const float* __restrict__ x, float* y)
    {
        extern __shared__ __align__(16) float row[];
        row[threadIdx.x] = x[blockIdx.x * N + threadIdx.x];
        __syncthreads();
        float sum = total<N>(row[N - 1 - threadIdx.x] * A);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    }"""
    host = np.random.default_rng(0).integers(0, 100, (7, 64)).astype(np.float32)
    x, y = cp.asarray(host), cp.empty(7, np.float32)
    # A, C, N and T are names the shim could trip over.
    options = ("-DN=64", "-DA=2.0f", "-DC=3", "-DT", "-std=c++17", "--fmad=false")
    run(cp, code, (x, y), grid=(7,), options=options, shared_mem=256)
    np.testing.assert_array_equal(y.get(), 2 * host.sum(axis=1))


def test_barriers_that_vote(cp: types.ModuleType) -> None:
    code = kernel(
        "int c = __syncthreads_count(t % 3 == 0); int a = __syncthreads_and(t < 99);"
        "int o = __syncthreads_or(t == 5); y[t] = c * 100 + a * 10 + o;",
        "int* y",
    )
    y = cp.empty(64, np.int32)
    run(cp, code, (y,))
    np.testing.assert_array_equal(y.get(), np.full(64, 22 * 100 + 11))


def test_warp_shuffles_and_votes(cp: types.ModuleType) -> None:
    code = kernel(
        """
        unsigned all = 0xffffffffu;
        int* row = y + t * 8;
        row[0] = __shfl_sync(all, t, 5);
        row[1] = __shfl_up_sync(all, t, 2);
        row[2] = __shfl_down_sync(all, t, 2u, 16);
        row[3] = __shfl_xor_sync(all, t, 1);
        row[4] = (int)__ballot_sync(all, t % 2);
        row[5] = __any_sync(all, t == 33) * 2 + __all_sync(all, t < 32);
        row[6] = (int)__shfl_sync(all, (long long)t << 33, 3) + (int)(__shfl_sync(all, 1.5 * t, 4));
        if (t % 2) row[7] = __shfl_xor_sync(0xaaaaaaaau, t, 2); else row[7] = 0;
        __syncwarp();
        """,
        "int* y",
    )
    y = cp.empty((64, 8), np.int32)
    run(cp, code, (y,))
    t = np.arange(64)
    lane, base = t % 32, t // 32 * 32
    expected = [
        base + 5,
        np.where(lane < 2, t, t - 2),
        np.where(lane % 16 < 14, t + 2, t),
        t ^ 1,
        np.full(64, np.uint32(0xAAAAAAAA).astype(np.int32)),
        np.where(t < 32, 1, 2),
        np.trunc(1.5 * (base + 4)),
        np.where(t % 2, t ^ 2, 0),
    ]
    np.testing.assert_array_equal(y.get(), np.stack(expected, 1))


def test_integer_atomics(cp: types.ModuleType) -> None:
    code = kernel(
        "atomicAdd(&y[0], 1); atomicMax(&y[1], t); atomicMin(&y[2], -t); atomicAdd(u, 2ull);"
        "int old; do { old = y[3]; } while (atomicCAS(&y[3], old, old + 3) != old);",
        "int* y, unsigned long long* u",
    )
    y, u = cp.zeros(4, np.int32), cp.zeros(1, np.uint64)
    run(cp, code, (y, u), grid=(5,))
    np.testing.assert_array_equal(y.get(), [320, 63, -63, 960])
    assert u.get()[0] == 640


def test_float_atomics_do_not_compile(cp: types.ModuleType) -> None:
    with pytest.raises(CompileError, match="atomicAdd"):
        run(cp, kernel("atomicAdd(y, 1.0f);"), (cp.zeros(1, np.float32),))


def test_arithmetic(cp: types.ModuleType) -> None:
    code = kernel(
        """
        float4 v = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
        reinterpret_cast<float4*>(y)[0] = v;
        y[4] = rsqrtf(4.0f); y[5] = fmaf(2.0f, 3.0f, 1.0f); y[6] = __int_as_float(0x40000000);
        y[7] = max(1.0f, __uint_as_float(0x7fc00000u)); y[8] = tanhf(0.5f); y[9] = __expf(1.0f);
        y[10] = min(3, 2) + max(1u, 7u); y[11] = __popc(255u) + __clz(1); y[12] = __ldg(y);
        """
    )
    y = cp.empty(13, np.float32)
    run(cp, code, (y,), block=(1,))
    expected = [1, 2, 3, 4, 0.5, 7, 2, 1, np.tanh(0.5), np.e, 9, 39, 1]
    np.testing.assert_allclose(y.get(), expected, rtol=1e-6)


def test_denormals_are_flushed_like_cupy_does(cp: types.ModuleType) -> None:
    x, y = cp.asarray(np.full(1, 1e-38, np.float32)), cp.empty(1, np.float32)
    args = (x, y, np.int32(1), np.float32(0.1))
    cp.RawModule(code=SCALE).get_function("scale")((1,), (1,), args)
    assert y.get()[0] == 0
    assert np.float32(1e-38) * np.float32(0.1) > 0  # and the process itself is left as it was


def test_device_constants_and_kernels_from_macros(cp: types.ModuleType) -> None:
    code = """
    __constant__ float table[3] = {1.0f, 2.0f, 4.0f};
    #define KERNEL(name, i) extern "C" __global__ void name(float* y) { y[i] = table[i]; }
    KERNEL(first, 0)
    KERNEL(last, 2)
    #ifdef MORE
    KERNEL(middle, 1)
    #endif
    """
    module = cp.RawModule(code=code)
    y = cp.zeros(3, np.float32)
    for name in ("first", "last"):
        module.get_function(name)((1,), (1,), (y,))
    np.testing.assert_array_equal(y.get(), [1, 0, 4])
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="not found"):
        module.get_function("middle")


# ---- wrong kernels


def test_a_thread_that_leaves_before_a_barrier(cp: types.ModuleType) -> None:
    code = kernel("if (t == 5) return; __syncthreads(); y[t] = 0;")
    for seed in range(4):
        module = emulated_cupy(seed)
        y = module.empty(64, np.float32)
        with pytest.raises(EmulatorError, match="left before a barrier") as caught:
            run(module, code, (y,), grid=(3,))
        assert caught.value.kernel == "k"
        assert caught.value.thread == (5, 0, 0)
        assert caught.value.block is not None
        run(module, kernel("__syncthreads(); y[t] = t;"), (y,))  # and the next launch is fine
        np.testing.assert_array_equal(y.get(), np.arange(64))


def test_different_barriers_do_not_meet(cp: types.ModuleType) -> None:
    code = kernel("if (t % 2)\n __syncthreads();\n else\n __syncthreads(); y[t] = 0;")
    with pytest.raises(EmulatorError, match="different barriers meet"):
        run(cp, code, (cp.empty(64, np.float32),))


@pytest.mark.parametrize(
    ("body", "block", "message"),
    [
        ("if (t < 16) y[t] = __shfl_xor_sync(~0u, y[t], 1);", 32, "stuck|left the kernel"),
        ("if (t < 16) return; y[t] = __shfl_xor_sync(~0u, y[t], 1);", 32, "stuck|left the kernel"),
        ("y[t] = __shfl_xor_sync(~0u, y[t], 1);", 20, "the block does not have"),
        ("if (t < 16) y[t] = __shfl_xor_sync(0xfff0u, y[t], 1);", 32, "not name the calling"),
        ("if (t < 16) y[t] = __shfl_xor_sync(0xffffu, y[t], 16);", 32, "reads lane"),
        ("if (t % 2)\n __syncwarp();\n else\n y[t] = __shfl_sync(~0u, y[t], 1);", 32, "disagree"),
        ("if (t) __syncthreads(); else __syncwarp(~0u);", 32, "stuck"),
        ("y[t] = __shfl_sync(~0u, y[t], 1, 12);", 32, "power of two"),
    ],
)
def test_wrong_warp_collectives(cp: types.ModuleType, body: str, block: int, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        run(cp, kernel(body), (cp.zeros(64, np.float32),), block=(block,))


REVERSE = "__shared__ float s[64]; s[t] = t; %s y[t] = s[63 - t];"


def test_a_missing_barrier_shows() -> None:
    def result(barrier: str, cp: types.ModuleType) -> list[np.ndarray]:
        y = cp.empty(64, np.float32)
        run(cp, kernel(REVERSE % barrier), (y,))
        return [y.get()]

    (right,) = check_order_independence(lambda cp: result("__syncthreads();", cp))
    np.testing.assert_array_equal(right, np.arange(64)[::-1])
    with pytest.raises(EmulatorError, match="differs between the orders"):
        check_order_independence(lambda cp: result("", cp))
    with pytest.raises(EmulatorError, match="depends on the order"):
        result("", emulated_cupy(order_check=True))


def test_a_race_between_blocks_shows() -> None:
    code = kernel("y[0] = blockIdx.x;")
    with pytest.raises(EmulatorError, match="depends on the order"):
        cp = emulated_cupy(order_check=True)
        run(cp, code, (cp.zeros(1, np.float32),), grid=(50,), block=(1,))


def test_uninitialised_memory_is_nan(cp: types.ModuleType) -> None:
    code = kernel(
        "__shared__ float s[64]; extern __shared__ float d[];"
        "if (t % 2) { s[t] = 1; d[t] = 2; } __syncthreads(); y[t] = s[t] + d[t];"
    )
    y = cp.empty(64, np.float32)
    assert np.isnan(y.get()).all()
    run(cp, code, (y,), grid=(2,), shared_mem=256)
    np.testing.assert_array_equal(y.get(), np.where(np.arange(64) % 2, 3, np.nan))


@without_asan
@pytest.mark.parametrize(
    "statement", ["y[64] = 1;", "y[-1] = 1;", "y[64] += 1;", "y[64] *= 2;", "y[64] = x[64];"]
)
def test_red_zones_around_arrays(cp: types.ModuleType, statement: str) -> None:
    x, y = cp.zeros(64, np.float32), cp.zeros(64, np.float32)
    with pytest.raises(EmulatorError, match=r"argument 1: .*outside, at byte (256|-4)"):
        run(cp, kernel(statement, "const float* x, float* y"), (x, y), block=(1,))
    with pytest.raises(EmulatorError, match="written outside"):
        y.get()
    del y
    with pytest.raises(EmulatorError, match="written outside"):
        check_red_zones()
    check_red_zones()


@without_asan
@pytest.mark.parametrize("statement", ["y[t + 1] = 1;", "y[t - 1] = 1;", "((float*)x)[t] = 1;"])
def test_writes_through_const_or_outside_of_a_view(statement: str) -> None:
    cp = emulated_cupy(write_check=True)
    x, buffer = cp.zeros(64, np.float32), cp.zeros(192, np.float32)
    code = "const float* x, float* y"
    run(cp, kernel("y[t] = x[t] + 1;", code), (x, buffer[64:128]))
    np.testing.assert_array_equal(buffer.get(), [0] * 64 + [1] * 64 + [0] * 64)
    with pytest.raises(EmulatorError, match="wrote where it must not"):
        run(cp, kernel(statement, code), (x, buffer[64:128]))


@without_asan
def test_reading_a_red_zone_gives_nan(cp: types.ModuleType) -> None:
    x, y = cp.zeros(64, np.float32), cp.zeros(64, np.float32)
    run(cp, kernel("y[t] = x[t + 1];", "const float* x, float* y"), (x, y))
    np.testing.assert_array_equal(y.get(), [0.0] * 63 + [np.nan])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("extern __shared__ float s[]; s[t + 1] = 1; y[t] = s[t];", "after the end of dynamic"),
        ("extern __shared__ float s[]; s[t - 1] = 1; y[t] = s[t];", "before the start of dynamic"),
        (
            "__shared__ float s[8][8]; s[t / 8][t % 8 + 1] = 1; y[t] = s[0][0];",
            "index 8 is outside",
        ),
        ("float s[4]; s[t % 5] = 1; y[t] = s[0];", "index 4 is outside"),
        (
            "*(float4*)(y + 1) = make_float4(0, 0, 0, 0);",
            r"misaligned address is used \(4 bytes off",
        ),
        ("*(float*)0 = y[t];", "null pointer"),
        ("y[1ll << 44] = 1;", "outside of every array"),
        ("y[t] = t / (t - 5);", "divi(sion|ded) by zero"),
        ("int i = 2147483647; y[t] = i + t;", r"signed overflow in \+"),
        ("assert(t != 5); y[t] = 0;", "assertion failed: t != 5"),
        ("__trap();", "__trap"),
    ],
)
def test_undefined_behaviour(cp: types.ModuleType, body: str, message: str) -> None:
    y = cp.zeros(64, np.float32)
    message += "|AddressSanitizer" if UNDER_ASAN else ""
    with pytest.raises(EmulatorError, match=message) as caught:
        run(cp, kernel(body), (y,), shared_mem=256)
    assert caught.value.kernel == "k"


def test_a_stack_overflow_is_an_error(cp: types.ModuleType) -> None:
    code = kernel("float s[40000]; for (int i = 0; i < n; ++i) s[i] = i; y[0] = s[n / 2];",
                  "float* y, int n")  # fmt: skip
    with pytest.raises(EmulatorError, match=r"stack overflowed|outside of every array"):
        run(cp, code, (cp.zeros(1, np.float32), np.int32(40000)), block=(1,))


def test_a_kernel_that_hangs_is_an_error() -> None:
    cp = emulated_cupy(seconds=1)
    flag = cp.zeros(1, np.int32)
    with pytest.raises(EmulatorError, match="did not end within 1 seconds"):
        run(cp, kernel("while (!*(volatile int*)flag) {}", "int* flag"), (flag,))
    run(cp, kernel("f[0] = 1;", "int* f"), (flag,))
    assert flag.get()[0] == 1


# ---- launches that CUDA or the C++ types forbid


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (lambda x, y: (x, y, 64, np.float32(1)), "argument 2 is a Python int"),
        (lambda x, y: (x, y, np.int64(64), np.float32(1)), "argument 2 is int64"),
        (lambda x, y: (x, y, np.int32(64), 1.0), "argument 3 is a Python float"),
        (lambda x, y: (x, y, np.int32(64), np.float64(1)), "argument 3 is float64"),
        (lambda x, y: (x, y, np.int32(64)), "3 arguments given, the kernel takes 4"),
        (lambda x, y: (x, y.get(), np.int32(64), np.float32(1)), "argument 1 is ndarray"),
        (lambda x, y: (x, None, np.int32(64), np.float32(1)), "argument 1 is NoneType"),
        (lambda x, y: (x, y.view(np.int32), np.int32(64), np.float32(1)), "dtype int32"),
        (lambda x, y: (x, y, y, np.float32(1)), "argument 2 is a device array"),
    ],
)
def test_wrong_arguments(cp: types.ModuleType, args: Any, message: str) -> None:
    x, y = cp.zeros(64, np.float32), cp.zeros(64, np.float32)
    scale = cp.RawModule(code=SCALE).get_function("scale")
    with pytest.raises(EmulatorError, match=message):
        scale((1,), (64,), args(x, y))


def test_a_null_pointer_can_be_passed_as_an_address(cp: types.ModuleType) -> None:
    y = cp.zeros(64, np.float32)
    run(cp, kernel("y[t] = x ? 1 : 2;", "const float* x, float* y"), (np.uint64(0), y))
    assert (y.get() == 2).all()


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0,), (1,), 0, "grid"),
        ((1, 65536), (1,), 0, "grid"),
        ((1,), (0,), 0, "block"),
        ((1,), (1, 1, 65), 0, "block"),
        ((1,), (32, 33), 0, "1056 threads"),
        ((1,), (1,), 49153, "dynamic"),
    ],
)
def test_wrong_launch_shapes(
    cp: types.ModuleType, grid: Any, block: Any, shared: int, message: str
) -> None:
    with pytest.raises(EmulatorError, match=message):
        run(cp, kernel(""), (cp.zeros(1, np.float32),), grid=grid, block=block, shared_mem=shared)


def test_shared_memory_limits_and_launch_bounds(cp: types.ModuleType) -> None:
    code = """
    extern "C" __global__ void __launch_bounds__(128, 2) k(float* y)
    {
        __shared__ float s[1024];
        extern __shared__ float d[];
        s[threadIdx.x] = d[threadIdx.x] = y[threadIdx.x];
    }"""
    y = cp.zeros(256, np.float32)
    k = cp.RawModule(code=code).get_function("k")
    assert (k.shared_size_bytes, k.max_threads_per_block) == (4096, 128)
    k((1,), (128,), (y,), shared_mem=45056)
    with pytest.raises(EmulatorError, match="256 threads in a block, at most 128"):
        k((1,), (256,), (y,), shared_mem=1024)
    with pytest.raises(EmulatorError, match="45060 bytes of dynamic"):
        k((1,), (128,), (y,), shared_mem=45060)
    k.max_dynamic_shared_size_bytes = 100_000
    k((1,), (128,), (y,), shared_mem=100_000)
    with pytest.raises(EmulatorError, match="100004 bytes of dynamic"):
        k((1,), (128,), (y,), shared_mem=100_004)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        k.max_dynamic_shared_size_bytes = 230_000


def test_compile_errors_name_the_line(cp: types.ModuleType) -> None:
    with pytest.raises(CompileError, match=r"kernel\.cu:2:.*\n?.*nonsense"):
        run(cp, "// one\nnonsense", ())
    with pytest.raises(CompileError, match="unknown compiler option '--frobnicate'"):
        run(cp, kernel(""), (), options=("--frobnicate",))
    with pytest.raises(CompileError, match="uint8_t"):  # NVRTC has no <cstdint> either
        run(cp, kernel("", "uint8_t* y"), ())


# ---- the stand-in for CuPy


def test_arrays_move_and_do_not_compute(cp: types.ModuleType) -> None:
    host = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    a = cp.asarray(host)
    assert (a.shape, a.dtype, a.size, a.nbytes, a.ndim) == ((2, 3, 4), np.float32, 24, 96, 3)
    assert a.flags.c_contiguous and not a[:, :, 1:].flags.c_contiguous
    assert a[1].data.ptr == a.data.ptr + 48
    assert a.reshape(6, 4)[5, 3].get() == 23
    np.testing.assert_array_equal(a[:, 1].get(), host[:, 1])
    b = cp.empty_like(a)
    b[...] = a
    b[0] = 7
    np.testing.assert_array_equal(cp.asnumpy(b), np.concatenate([np.full((1, 3, 4), 7), host[1:]]))
    np.testing.assert_array_equal(a.get(), host)
    b.set(host)
    assert b.get().tobytes() == host.tobytes()
    for wrong in (lambda: a + a, lambda: a == b, lambda: host * a, lambda: a[a]):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(a)
    with pytest.raises(ValueError, match="Shape mismatch"):
        b.set(host[0])
    with pytest.raises(TypeError, match="float64"):
        b.set(host.astype(np.float64))


def test_a_view_is_passed_by_its_first_element_without_strides(cp: types.ModuleType) -> None:
    x, y = cp.asarray(np.arange(12, dtype=np.float32).reshape(3, 4)), cp.empty(4, np.float32)
    scale = cp.RawModule(code=SCALE).get_function("scale")
    scale((1,), (4,), (x.T[1], y, np.int32(4), np.float32(1)))
    np.testing.assert_array_equal(y.get(), [1, 2, 3, 4])  # not 1, 5, 9: the trap is CuPy's


def test_memory_is_counted_and_limited() -> None:
    cp = emulated_cupy(total_memory=10_000)
    pool = cp.get_default_memory_pool()
    a = cp.zeros(2000, np.float32)
    assert pool.used_bytes() == 8000
    assert cp.cuda.Device().mem_info == (2000, 10_000)
    with pytest.raises(OutOfMemoryError, match="2,004 bytes"):
        cp.empty(501, np.float32)
    del a
    assert pool.used_bytes() == 0


def test_devices_streams_and_the_import() -> None:
    with installed(emulated_cupy(devices=2, multiprocessors=7)):
        import cupy
        from cupy.cuda import runtime

        assert runtime.getDeviceCount() == 2
        with cupy.cuda.Device(1) as device:
            assert device.attributes["MultiProcessorCount"] == 7
            b = cupy.zeros(3, cupy.float32)
            assert b.device.id == 1
        with pytest.raises(EmulatorError, match="another device"):
            run(cupy, kernel(""), (b,))
        with pytest.raises(runtime.CUDARuntimeError, match="InvalidDevice"):
            cupy.cuda.Device(2).use()
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            assert cupy.cuda.get_current_stream() is stream
        assert cupy.cuda.get_current_stream() is cupy.cuda.Stream.null
    assert "emulator" not in str(sys.modules.get("cupy"))


# ---- AddressSanitizer

SANITIZED = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np
from emulator import EmulatorError, emulated_cupy

cp = emulated_cupy()
code = '''
extern "C" __global__ void k(float* y, int i)
{{
    __shared__ float s[64];
    float local[4] = {{0, 0, 0, 0}};
    s[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    float* p = threadIdx.x % 2 ? s : local;
    y[threadIdx.x] = {expression};
    __syncthreads();
}}'''
y = cp.zeros(64, np.float32)
k = cp.RawModule(code=code).get_function("k")
for i in range(2):
    try:
        k((2,), (64,), (y, np.int32({index})))
        print("clean")
    except EmulatorError as error:
        print("FOUND", error)
"""


@pytest.mark.skipif(sanitizer_library() is None, reason="libasan is not installed")
@pytest.mark.parametrize(
    ("expression", "index", "finding"),
    [
        ("s[i]", 3, None),
        ("y[i]", 64, "use-after-poison"),
        ("y[i]", -1, "use-after-poison"),
        ("s[0]; float* q = s; y[0] = q[i]", 64, "global-buffer-overflow"),
        ("p[0]; float* q = local; y[0] = q[i]", 4, "stack-buffer-overflow"),
    ],
)
def test_address_sanitizer(
    tmp_path: Path, expression: str, index: int, finding: str | None
) -> None:
    script = tmp_path / "script.py"
    folder = str(Path(__file__).parent)
    script.write_text(SANITIZED.format(folder=folder, expression=expression, index=index))
    done = run_sanitized([str(script)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FOUND") == (2 if finding else 0), done.stdout + done.stderr
    assert done.stdout.count("clean") == (0 if finding else 2)
    if finding:
        assert finding in done.stdout
