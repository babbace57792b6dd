// Convolution of a map that 2x2 max-unpooling makes, in the tiles of conv2d_tiles.cuh: that map is
// never in memory. See cae_raw/ops/unpool_conv2d.py.
//
// unpool_conv2d_forward: y = act(conv(x put where mask points, w) + b)
//   shapes: x and mask (N, C, H, W): the size before unpooling, w (O, C, KH, KW), y (N, O, OH, OW)
//   constants: C, O, KH, KW, SH, SW; FWD_*
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 5*N*C*H*W + 4*(O*C*KH*KW + O + N*O*OH*OW)
//   bound: arithmetic, or memory where C or O is below about 10
// unpool_conv2d_backward_input: dx = what mask selects of conv2d_backward_input, times (gate > 0)
//   shapes: dy (N, O, OH, OW), w (O, C, KH, KW), mask, dx and, unless null, gate (N, C, H, W)
//   constants: C, O, KH, KW, SH, SW; INP_*
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 5*N*C*H*W + 4*(O*C*KH*KW + N*O*OH*OW)
//   bound: as unpool_conv2d_forward
// unpool_conv2d_backward_weight: partial = conv2d_backward_weight of dy and x put where mask points
//   shapes: dy (N, O, OH, OW), x and mask (N, C, H, W), partial (R, O, C, KH, KW)
//   constants: C, O, KH, KW, SH, SW; WGT_*
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 5*N*C*H*W + 4*(R*O*C*KH*KW + N*O*OH*OW)
//   bound: arithmetic; reads of dy where C is small
//
//   device memory          shared memory, registers            device memory
//
//   x, mask --- staged tile of 2*H x 2*W ---> sums of strips ---> y          (Unpooled)
//   dx <--- mask selects <--- sums of 2*H x 2*W <--- staged tile <--- dy     (ToSelected)
//                             in strips of an even length
//
// A last row or column of the unpooled map that is in no window holds zeros and is not read; it
// counts only in OH and OW. The gate is the output of the ReLU that made x.
//
// Gain, counted for the forward pass of the deep model's 12 -> 12 at 60x60: 0.24 MB per image where
// the layers one by one move 0.58. Not measured on a GPU yet.

#include "common.cuh"
#include "conv2d_tiles.cuh"

extern "C" __global__ void __launch_bounds__(FWD_THREADS, 512 / FWD_THREADS) unpool_conv2d_forward(
    const float* __restrict__ x,             // (N, C, H, W)
    const unsigned char* __restrict__ mask,  // (N, C, H, W)
    const float* __restrict__ w,             // (O, C, KH, KW)
    const float* __restrict__ b,             // (O)
    float* __restrict__ y,                   // (N, O, OH, OW)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips,
    int activation)
{
  convolve<Forward>(Unpooled(x, mask, H, W), w, ToMap{y, b, nullptr, OH, OW, activation}, N, OH, OW,
                    PH, PW, tile_w, tile_strips);
}

extern "C" __global__ void __launch_bounds__(INP_THREADS, 512 / INP_THREADS) unpool_conv2d_backward_input(
    const float* __restrict__ dy,            // (N, O, OH, OW)
    const unsigned char* __restrict__ mask,  // (N, C, H, W)
    const float* __restrict__ w,             // (O, C, KH, KW)
    const float* __restrict__ gate,          // (N, C, H, W) or null
    float* __restrict__ dx,                  // (N, C, H, W)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips)
{
  convolve<BackwardInput>(Whole{dy, OH, OW}, w, ToSelected{dx, mask, gate, H, W}, N, 2 * H, 2 * W,
                          KH - 1 - PH, KW - 1 - PW, tile_w, tile_strips);
}

extern "C" __global__ void __launch_bounds__(WGT_THREADS, 512 / WGT_THREADS) unpool_conv2d_backward_weight(
    const float* __restrict__ dy,            // (N, O, OH, OW)
    const float* __restrict__ x,             // (N, C, H, W)
    const unsigned char* __restrict__ mask,  // (N, C, H, W)
    float* __restrict__ partial,             // (R * O * C * KH * KW)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips, int R)
{
  weight_sums(Whole{dy, OH, OW}, Unpooled(x, mask, H, W), partial, N, OH, OW, PH, PW, tile_w,
              tile_strips, R);
}
