// Softmax cross-entropy, value and gradient in one pass. See cae_raw/ops/cross_entropy.py.
//
// cross_entropy: partial[r] = sum over the rows n of piece r of log(sum over k of e^(x[n,k] - m[n])) + m[n] - x[n,labels[n]], m[n] being the row's maximum; dx[n,k] = scale * (softmax(x[n])[k] - (k == labels[n]))
//   shapes: x, dx (N, K), labels (N) int64, partial (R) float64, R = ceil(N / ROWS)
//   constants: THREADS, a multiple of 32; ROWS, rows per partial sum
//   flops: 6*N*K
//   bytes: 8*N*K + 8*N
//   bound: memory; with few classes latency
// cross_entropy_uint8: the same
//   shapes: the same, but labels (N) uint8
//   constants: THREADS, a multiple of 32; ROWS, rows per partial sum
//   flops: 6*N*K
//   bytes: 8*N*K + N
//   bound: memory; with few classes latency
//
// A warp takes a row, and each of its lanes every 32nd logit. A label that is none of 0 .. K-1 makes
// its row and the sum NaN, because a device cannot raise; NaN and +infinity in a row do the same.
// The loops are not unrolled: classes are few, and with four steps at a time sm_80 spilled registers.

#include "common.cuh"

// Over the lanes of a warp, in all of them. Both orders are the same in every lane: a + b = b + a.
__device__ __forceinline__ float warp_max_everywhere(float v) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, distance));
  }
  return v;
}

__device__ __forceinline__ float warp_sum_everywhere(float v) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    v += __shfl_xor_sync(ALL_LANES, v, distance);
  }
  return v;
}

template <class Label>
__device__ __forceinline__ void cross_entropy_rows(
    const float* x, const Label* labels, float* dx, double* partial,
    long long N, int K, long long R, float scale)
{
  constexpr int WARPS = THREADS / WARP;
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  FOR_EACH_BLOCK(piece, R) {
    long long begin = (long long)piece * ROWS, end = min(begin + ROWS, N);
    float total = 0.0f;  // of ROWS / WARPS rows; everything above that is float64
    for (long long n = begin + warp; n < end; n += WARPS) {
      const float* row = x + n * K;
      float* gradient = dx + n * K;
      bool known = labels[n] >= 0 && labels[n] < K;
      int label = known ? (int)labels[n] : 0;
      float top = row[0];  // fmaxf passes NaN over; the sum of the powers shows it
#pragma unroll 1
      for (int k = lane; k < K; k += WARP) top = fmaxf(top, row[k]);
      top = warp_max_everywhere(top);
      float sum = 0.0f;
#pragma unroll 1
      for (int k = lane; k < K; k += WARP) sum += expf(row[k] - top);
      sum = warp_sum_everywhere(sum);
      if (!known) sum = 0.0f * __int_as_float(0x7f800000);  // NaN
#pragma unroll 1
      for (int k = lane; k < K; k += WARP) {
        gradient[k] = scale * (expf(row[k] - top) / sum - (k == label ? 1.0f : 0.0f));
      }
      if (lane == 0) total += logf(sum) - (row[label] - top);
    }
    double sum = block_sum<THREADS>((double)total);
    if (threadIdx.x == 0) partial[piece] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(
    const float* __restrict__ x,           // (N, K)
    const long long* __restrict__ labels,  // (N)
    float* __restrict__ dx,                // (N, K)
    double* __restrict__ partial,          // (R)
    long long N, int K, long long R, float scale)
{
  cross_entropy_rows(x, labels, dx, partial, N, K, R, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_uint8(
    const float* __restrict__ x,               // (N, K)
    const unsigned char* __restrict__ labels,  // (N)
    float* __restrict__ dx,                    // (N, K)
    double* __restrict__ partial,              // (R)
    long long N, int K, long long R, float scale)
{
  cross_entropy_rows(x, labels, dx, partial, N, K, R, scale);
}
