// The squared error, value and gradient in one pass over memory, and the gradient of an L1 term.
// See cae_raw/ops/loss.py.
//
// squared_error: partial[r] = sum of (y - target)^2 over piece r; dy = scale * (y - target)
//   shapes: y, target, dy: n elements; partial (R) float64, R = ceil(n / PIECE)
//   constants: THREADS, a multiple of 32; PIECE, elements per partial sum
//   flops: 4*n
//   bytes: 12*n
//   bound: memory
// l1_backward: dx = dx + scale * sign(x), in place; sign(0) = 0, NaN stays NaN
//   shapes: x, dx: n elements
//   flops: 2*n
//   bytes: 12*n
//   bound: memory
//
// Pieces have a fixed size, so that the sum does not depend on the grid. A thread adds PIECE/THREADS
// squares in float32, everything above that is float64; `reduce_total` adds the pieces.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) squared_error(
    const float* __restrict__ y,       // (n)
    const float* __restrict__ target,  // (n)
    float* __restrict__ dy,            // (n)
    double* __restrict__ partial,      // (R)
    long long n, long long R, float scale)
{
  FOR_EACH_BLOCK(piece, R) {
    long long begin = (long long)piece * PIECE, end = min(begin + PIECE, n);
    float sum = 0.0f;
    for (long long k = begin + threadIdx.x; k < end; k += THREADS) {
      float error = y[k] - target[k];
      sum += error * error;
      dy[k] = scale * error;
    }
    double total = block_sum<THREADS>((double)sum);
    if (threadIdx.x == 0) partial[piece] = total;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) l1_backward(
    float* __restrict__ dx,       // (n)
    const float* __restrict__ x,  // (n)
    long long n, float scale)
{
  FOR_EACH(k, n) dx[k] += scale * (x[k] > 0.0f ? 1.0f : x[k] < 0.0f ? -1.0f : x[k]);
}
