// Making a batch out of a uint8 data set that stays on the device. See cae_raw/ops/batch.py.
//
// gather: x[n,k] = data[indices[n],k] * scale + shift, rounded after each operation
//   shapes: data (M, L) uint8, indices (N) int64, x (N, L), with L = C*H*W values per image
//   flops: 2*N*L
//   bytes: 5*N*L
//   bound: memory

#include "common.cuh"

extern "C" __global__ void gather(
    const unsigned char* __restrict__ data,    // (M * L)
    const long long* __restrict__ indices,     // (N)
    float* __restrict__ x,                     // (N * L)
    long long M, long long N, int L, float scale, float shift)
{
  FOR_EACH(k, N * L) {
    int at;  // range [0, L)
    long long image = indices[divide(k, L, at)];
    // An index outside the data set must not read outside it; NaN makes the mistake visible.
    bool known = image >= 0 && image < M;
    // The rounded intrinsics forbid a fused multiply-add: the batch is NumPy's to the last bit.
    x[k] = known ? __fadd_rn(__fmul_rn((float)data[image * L + at], scale), shift)
                 : __int_as_float(0x7fffffff);
  }
}
