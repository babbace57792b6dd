// Convolution in the tiles of conv2d_tiles.cuh. See cae_raw/ops/conv2d.py.
//
// conv2d_forward: y[n,o,i,j] = act(b[o] + sum over c,p,q of w[o,c,p,q] * x[n,c,i*SH+p-PH,j*SW+q-PW])
//   shapes: x (N, C, H, W), w (O, C, KH, KW), b (O), y (N, O, OH, OW)
//   constants: C, O, KH, KW, SH, SW; FWD_*
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + O*C*KH*KW + O + N*O*OH*OW)
//   bound: arithmetic, or memory where C or O is below about 10
// conv2d_backward_input: dx[n,c,h,v] = sum over o,p,q of w[o,c,p,q] * dy[n,o,(h+PH-p)/SH,(v+PW-q)/SW]
//   shapes: dy (N, O, OH, OW), w (O, C, KH, KW), dx (N, C, H, W); a gate of dx's shape: dx times (gate > 0)
//   constants: C, O, KH, KW, SH, SW; INP_*
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + O*C*KH*KW + N*O*OH*OW)
//   bound: as conv2d_forward
// conv2d_backward_weight: partial[r,o,c,p,q] = sum over the tiles of piece r of dy * x at the tap
//   shapes: dy (N, O, OH, OW), x (N, C, H, W), partial (R, O, C, KH, KW)
//   constants: C, O, KH, KW, SH, SW; WGT_*
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + R*O*C*KH*KW + N*O*OH*OW)
//   bound: arithmetic; reads of dy where C is small

#include "common.cuh"
#include "conv2d_tiles.cuh"

extern "C" __global__ void __launch_bounds__(FWD_THREADS, 512 / FWD_THREADS) conv2d_forward(
    const float* __restrict__ x,  // (N, C, H, W)
    const float* __restrict__ w,  // (O, C, KH, KW)
    const float* __restrict__ b,  // (O)
    float* __restrict__ y,        // (N, O, OH, OW)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips,
    int activation)
{
  convolve<Forward>(Whole{x, H, W}, w, ToMap{y, b, nullptr, OH, OW, activation}, N, OH, OW, PH, PW,
                    tile_w, tile_strips);
}

extern "C" __global__ void __launch_bounds__(INP_THREADS, 512 / INP_THREADS) conv2d_backward_input(
    const float* __restrict__ dy,    // (N, O, OH, OW)
    const float* __restrict__ w,     // (O, C, KH, KW)
    const float* __restrict__ gate,  // (N, C, H, W) or null
    float* __restrict__ dx,          // (N, C, H, W)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips)
{
  convolve<BackwardInput>(Whole{dy, OH, OW}, w, ToMap{dx, nullptr, gate, H, W, ACTIVATION_NONE}, N,
                          H, W, KH - 1 - PH, KW - 1 - PW, tile_w, tile_strips);
}

extern "C" __global__ void __launch_bounds__(WGT_THREADS, 512 / WGT_THREADS) conv2d_backward_weight(
    const float* __restrict__ dy,  // (N, O, OH, OW)
    const float* __restrict__ x,   // (N, C, H, W)
    float* __restrict__ partial,   // (R * O * C * KH * KW)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips, int R)
{
  weight_sums(Whole{dy, OH, OW}, Whole{x, H, W}, partial, N, OH, OW, PH, PW, tile_w, tile_strips,
              R);
}
