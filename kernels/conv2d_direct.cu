// Convolution without tiles: the bias gradient, and a plain version of the other three for windows
// too large for the tiles of conv2d.cu. No -D constant but THREADS. See cae_raw/ops/conv2d.py.
//
// conv2d_backward_bias: partial[r,o] = sum of dy[n,o,i,j] over piece r of the pairs (n, i*OW + j)
//   shapes: dy (N, O, P) with P = OH*OW, partial (R, O)
//   constants: THREADS, a multiple of 32
//   flops: N*O*P
//   bytes: 4*N*O*P
//   bound: memory
// conv2d_forward_direct: y = as conv2d_forward
//   shapes: x (N, C, H, W), w (O, C, KH, KW), b (O), y (N, O, OH, OW)
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + O*C*KH*KW + O + N*O*OH*OW)
//   bound: reads from the caches, two for each multiply-add
// conv2d_backward_input_direct: dx = as conv2d_backward_input
//   shapes: dy (N, O, OH, OW), w (O, C, KH, KW), dx (N, C, H, W)
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + O*C*KH*KW + N*O*OH*OW)
//   bound: reads from the caches, two for each multiply-add
// conv2d_backward_weight_direct: dw = as conv2d_backward_weight
//   shapes: dy (N, O, OH, OW), x (N, C, H, W), dw (O, C, KH, KW)
//   flops: 2*N*O*OH*OW*C*KH*KW
//   bytes: 4*(N*C*H*W + O*C*KH*KW + N*O*OH*OW)
//   bound: reads from the caches, two for each multiply-add

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) conv2d_backward_bias(
    const float* __restrict__ dy,  // (N * O * P)
    float* __restrict__ partial,   // (R * O)
    long long N, int O, int P, long long R, int piece_size)
{
  FOR_EACH_BLOCK(piece, R * O) {
    int o;  // range [0, O)
    long long r = divide_piece(piece, O, o);
    int start;  // the first position of the piece, in its first image
    long long first_image = divide(r * piece_size, P, start);
    long long count = min((long long)piece_size, N * P - r * piece_size);
    float sum = 0.0f;
    for (int e = threadIdx.x; e < count; e += THREADS) {
      int position;  // range [0, P)
      long long n = first_image + divide((long long)start + e, P, position);
      sum += dy[(n * O + o) * P + position];
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) partial[piece] = sum;
  }
}

extern "C" __global__ void conv2d_forward_direct(
    const float* __restrict__ x,  // (N, C, H, W)
    const float* __restrict__ w,  // (O, C, KH, KW)
    const float* __restrict__ b,  // (O)
    float* __restrict__ y,        // (N, O, OH, OW)
    long long N, int C, int H, int W, int O, int OH, int OW,
    int KH, int KW, int SH, int SW, int PH, int PW, int activation)
{
  FOR_EACH(k, N * O * OH * OW) {
    int o, i, j;  // range [0, O), [0, OH), [0, OW)
    long long n = divide(divide(divide(k, OW, j), OH, i), O, o);
    int top = i * SH - PH, left = j * SW - PW;
    int first_p = max(-top, 0), last_p = min(KH, H - top);  // the taps that lie on the map
    int first_q = max(-left, 0), last_q = min(KW, W - left);
    float sum = b[o];
    for (int c = 0; c < C; ++c) {
      const float* map = x + (n * C + c) * H * W;                  // (H, W)
      const float* window = w + ((long long)o * C + c) * KH * KW;  // (KH, KW)
      for (int p = first_p; p < last_p; ++p) {
        for (int q = first_q; q < last_q; ++q) {
          sum = fmaf(window[p * KW + q], map[(long long)(top + p) * W + left + q], sum);
        }
      }
    }
    y[k] = activate(sum, activation);
  }
}

extern "C" __global__ void conv2d_backward_input_direct(
    const float* __restrict__ dy,  // (N, O, OH, OW)
    const float* __restrict__ w,   // (O, C, KH, KW)
    float* __restrict__ dx,        // (N, C, H, W)
    long long N, int C, int H, int W, int O, int OH, int OW,
    int KH, int KW, int SH, int SW, int PH, int PW)
{
  FOR_EACH(k, N * C * H * W) {
    int c, h, v;  // range [0, C), [0, H), [0, W)
    long long n = divide(divide(divide(k, W, v), H, h), C, c);
    // The windows over (h, v): i*SH <= h + PH < i*SH + KH.
    int last_i = min((h + PH) / SH, OH - 1), last_j = min((v + PW) / SW, OW - 1);
    float sum = 0.0f;
    for (int o = 0; o < O; ++o) {
      const float* map = dy + (n * O + o) * OH * OW;               // (OH, OW)
      const float* window = w + ((long long)o * C + c) * KH * KW;  // (KH, KW)
      for (int i = last_i; i >= 0 && h + PH - i * SH < KH; --i) {
        for (int j = last_j; j >= 0 && v + PW - j * SW < KW; --j) {
          int p = h + PH - i * SH, q = v + PW - j * SW;
          sum = fmaf(window[p * KW + q], map[(long long)i * OW + j], sum);
        }
      }
    }
    dx[k] = sum;
  }
}

// A block per weight.
extern "C" __global__ void __launch_bounds__(THREADS) conv2d_backward_weight_direct(
    const float* __restrict__ dy,  // (N, O, OH, OW)
    const float* __restrict__ x,   // (N, C, H, W)
    float* __restrict__ dw,        // (O, C, KH, KW)
    long long N, int C, int H, int W, int O, int OH, int OW,
    int KH, int KW, int SH, int SW, int PH, int PW)
{
  FOR_EACH_BLOCK(piece, O * C * KH * KW) {
    int c, p, q;  // range [0, C), [0, KH), [0, KW)
    int o = divide_piece(divide_piece(divide_piece(piece, KW, q), KH, p), C, c);
    float sum = 0.0f;
    for (long long e = threadIdx.x; e < N * OH * OW; e += THREADS) {
      int i, j;  // range [0, OH), [0, OW)
      long long n = divide(divide(e, OW, j), OH, i);
      int h = i * SH + p - PH, v = j * SW + q - PW;
      if (h >= 0 && h < H && v >= 0 && v < W) {
        sum = fmaf(dy[((n * O + o) * OH + i) * OW + j], x[((n * C + c) * H + h) * W + v], sum);
      }
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) dw[piece] = sum;
  }
}
