// Making a batch out of a uint8 data set that stays on the device. See cae_raw/ops/batch.py.
//
// gather: x[n,k] = data[indices[n],k] * scale + shift, rounded after each operation
//   shapes: data (M, L) uint8, indices (N) int64, x (N, L), with L = C*H*W values per image
//   flops: 2*N*L
//   bytes: 5*N*L
//   bound: memory
// gather_flipped: out[n] = data[indices[n]], its columns in reverse order where flips[n] is not 0
//   shapes: data (M, L) uint8, indices (N) int64, flips (N) uint8, out (N, L) uint8; L = C*H*W
//   flops: 0
//   bytes: 2*N*L
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

extern "C" __global__ void gather_flipped(
    const unsigned char* __restrict__ data,    // (M * L)
    const long long* __restrict__ indices,     // (N)
    const unsigned char* __restrict__ flips,   // (N)
    unsigned char* __restrict__ out,           // (N * L)
    long long M, long long N, int L, int W)
{
  FOR_EACH(k, N * L) {
    int at;  // range [0, L)
    long long n = divide(k, L, at);
    long long image = indices[n];
    bool known = image >= 0 && image < M;  // a byte has no NaN: an unknown image is black
    int from = flips[n] ? at + W - 1 - 2 * (at % W) : at;
    out[k] = known ? data[image * L + from] : 0;
  }
}
