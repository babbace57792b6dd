// Convolution with 2x2 max-pooling behind it, in the tiles of conv2d_tiles.cuh: the map between the
// two is never in memory. See cae_raw/ops/conv2d_pool.py.
//
// conv2d_pool_forward: y, mask = the maximum of each 2x2 window of act(conv(x, w) + b), and its place
//   shapes: x (N, C, H, W), w (O, C, KH, KW), b (O), y and mask (N, O, OH, OW): the pooled size
//   constants: C, O, KH, KW, SH, SW; FWD_*
//   flops: 8*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + O*C*KH*KW + O) + 5*N*O*OH*OW
//   bound: arithmetic, or memory where C or O is below about 10
// conv2d_pool_backward_input: dx = conv2d_backward_input of dy put where mask points, times (gate > 0)
//   shapes: dy and mask (N, O, OH, OW), w (O, C, KH, KW), dx and, unless null, gate (N, C, H, W)
//   constants: C, O, KH, KW, SH, SW; INP_*
//   flops: 8*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + O*C*KH*KW) + 5*N*O*OH*OW
//   bound: as conv2d_pool_forward
// conv2d_pool_backward_weight: partial = conv2d_backward_weight of dy put where mask points, and x
//   shapes: dy and mask (N, O, OH, OW), x (N, C, H, W), partial (R, O, C, KH, KW)
//   constants: C, O, KH, KW, SH, SW; WGT_*
//   flops: 8*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + R*O*C*KH*KW) + 5*N*O*OH*OW
//   bound: arithmetic; reads of dy where C is small
//
//   device memory          shared memory, registers            device memory
//
//   x ---- staged tile ----> sums of 2*OH x 2*OW outputs ----> y, mask       (ToPooled)
//                            in strips of an even length
//   dx <--- sums <--- staged tile of 2*OH x 2*OW gradients <-- dy, mask      (Unpooled)
//
// Where the size of the convolution's map is odd, its last row or column is in no window: it is not
// computed, and has no gradient. The gate is the output of the ReLU that made x.
//
// Gain, counted for the forward pass of the deep model's 12 -> 12 at 60x60: 0.24 MB per image where
// the layers one by one move 0.58. Not measured on a GPU yet.

#include "common.cuh"
#include "conv2d_tiles.cuh"

extern "C" __global__ void __launch_bounds__(FWD_THREADS, 512 / FWD_THREADS) conv2d_pool_forward(
    const float* __restrict__ x,       // (N, C, H, W)
    const float* __restrict__ w,       // (O, C, KH, KW)
    const float* __restrict__ b,       // (O)
    float* __restrict__ y,             // (N, O, OH, OW)
    unsigned char* __restrict__ mask,  // (N, O, OH, OW)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips,
    int activation)
{
  convolve<Forward>(Whole{x, H, W}, w, ToPooled{y, mask, b, OH, OW, activation}, N, 2 * OH, 2 * OW,
                    PH, PW, tile_w, tile_strips);
}

extern "C" __global__ void __launch_bounds__(INP_THREADS, 512 / INP_THREADS) conv2d_pool_backward_input(
    const float* __restrict__ dy,            // (N, O, OH, OW)
    const unsigned char* __restrict__ mask,  // (N, O, OH, OW)
    const float* __restrict__ w,             // (O, C, KH, KW)
    const float* __restrict__ gate,          // (N, C, H, W) or null
    float* __restrict__ dx,                  // (N, C, H, W)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips)
{
  convolve<BackwardInput>(Unpooled(dy, mask, OH, OW), w,
                          ToMap{dx, nullptr, gate, H, W, ACTIVATION_NONE}, N, H, W, KH - 1 - PH,
                          KW - 1 - PW, tile_w, tile_strips);
}

extern "C" __global__ void __launch_bounds__(WGT_THREADS, 512 / WGT_THREADS) conv2d_pool_backward_weight(
    const float* __restrict__ dy,            // (N, O, OH, OW)
    const unsigned char* __restrict__ mask,  // (N, O, OH, OW)
    const float* __restrict__ x,             // (N, C, H, W)
    float* __restrict__ partial,             // (R * O * C * KH * KW)
    int N, int H, int W, int OH, int OW, int PH, int PW, int tile_w, int tile_strips, int R)
{
  weight_sums(Unpooled(dy, mask, OH, OW), Whole{x, H, W}, partial, N, 2 * OH, 2 * OW, PH, PW,
              tile_w, tile_strips, R);
}
