// The second stage of sums that many blocks begin: partial results added in a fixed order.
//
// reduce_rows: out[m] = sum over r of partial[r,m]
//   shapes: partial (R, M), out (M)
//   constants: THREADS, a multiple of 32
//   flops: R*M
//   bytes: 4*(R*M + M)
//   bound: memory
// reduce_total: out[0] = sum over r of partial[r], in float64
//   shapes: partial (R) float64, out (1) float64
//   constants: THREADS, a multiple of 32
//   flops: R
//   bytes: 8*R
//   bound: latency; one block, R is small

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) reduce_rows(
    const float* __restrict__ partial,  // (R * M)
    float* __restrict__ out,            // (M)
    long long R, long long M)
{
  column_sums<THREADS>(partial, out, R, M);
}

extern "C" __global__ void __launch_bounds__(THREADS) reduce_total(
    const double* __restrict__ partial,  // (R)
    double* __restrict__ out,            // (1)
    long long R)
{
  if (blockIdx.x != 0) return;  // the whole block leaves together
  double sum = 0.0;
  for (long long r = threadIdx.x; r < R; r += THREADS) sum += partial[r];
  sum = block_sum<THREADS>(sum);
  if (threadIdx.x == 0) out[0] = sum;
}
