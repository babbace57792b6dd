"""What the device can do at most: bytes per second of a copy, FLOPs per second of a loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from on_gpu.device import Bench
from on_gpu.record import Record

CHAINS = 16  # independent sums per thread, enough to hide the latency of a multiply-add
SOURCE = """
extern "C" __global__ void multiply_add(float* __restrict__ out, float a, float b, int rounds)
{
  float sum[CHAINS];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum[i] = (float)(threadIdx.x + i);
  for (int r = 0; r < rounds; ++r) {
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) sum[i] = fmaf(sum[i], a, b);
  }
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) total += sum[i];
  out[(long long)blockIdx.x * blockDim.x + threadIdx.x] = total;
}
extern "C" __global__ void nothing() {}
"""
THREADS = 256


def run(bench: Bench, record: Record) -> None:
    """Measure the copy, the loop of multiply-adds, and an empty kernel."""
    record.put("copy", copy(bench))
    record.put("multiply_add", multiply_add(bench))
    empty = _function(bench, "nothing")
    record.put("empty_kernel", bench.milliseconds(lambda: empty((1,), (32,), ())))


def copy(bench: Bench) -> dict[str, Any]:
    """Device to device, counting bytes read and bytes written."""
    size = 1 << 14 if bench.emulated else 1 << 30
    source, target = (bench.backend.zeros((size,), np.uint8) for _ in range(2))
    found = bench.milliseconds(lambda: bench.cupy.copyto(target, source), flush=False)
    return {**found, "bytes": 2 * size, "gb_per_s": 2 * size / found["ms"] / 1e6}


def multiply_add(bench: Bench) -> dict[str, Any]:
    """Fused multiply-adds in registers, two FLOPs each; the result of one thread is checked."""
    processors = bench.cupy.cuda.Device(bench.backend.device).attributes["MultiProcessorCount"]
    blocks, rounds = (2, 8) if bench.emulated else (processors * 32, 4096)
    out = bench.backend.zeros((blocks * THREADS,))
    function = _function(bench, "multiply_add")
    arguments = (out, np.float32(0.5), np.float32(1.0), np.int32(rounds))
    found = bench.milliseconds(lambda: function((blocks,), (THREADS,), arguments), flush=False)
    # s -> s/2 + 1 tends to 2, from t + i after `rounds` rounds: 2 + (t + i - 2) / 2^rounds
    first = CHAINS * 2 + sum(i - 2 for i in range(CHAINS)) * 0.5**rounds
    actual = float(bench.backend.to_numpy(out)[0])
    if abs(actual - first) > 1e-4 * abs(first):
        raise ArithmeticError(f"the loop of multiply-adds gives {actual}, not {first}")
    flops = 2 * CHAINS * rounds * blocks * THREADS
    return {**found, "flops": flops, "tflop_per_s": flops / found["ms"] / 1e9}


def _function(bench: Bench, name: str) -> Any:
    options = ("-std=c++17", f"-DCHAINS={CHAINS}")
    return bench.cupy.RawModule(code=SOURCE, options=options).get_function(name)
