// Max-pooling with a mask, and moving values through the mask. See cae_raw/ops/pool2d.py.
//
// The mask holds p*KW + q, the place of the maximum inside its window, in one byte. Each kernel
// gathers: a thread owns one element of the output and reads what belongs to it. So overlapping
// windows need no atomics, and no output has to be zeroed first.
//
// maxpool_forward: y = max over the window of x; mask = p*KW + q of the first maximum, NaN wins
//   shapes: x (M, H, W), y (M, OH, OW), mask (M, OH, OW) uint8, with M = N*C planes
//   flops: M*OH*OW*KH*KW
//   bytes: 4*M*H*W + 5*M*OH*OW
//   bound: memory
// mask_scatter: large[h,w] = sum of small[i,j] over the windows whose mask points to (h,w)
//   shapes: small, mask (M, OH, OW), large (M, H, W)
//   flops: M*OH*OW
//   bytes: 4*M*H*W + 5*M*OH*OW
//   bound: memory
// mask_gather: small[i,j] = large at the place mask[i,j] points to, 0 for a mask that points outside
//   shapes: large (M, H, W), mask, small (M, OH, OW)
//   flops: 0
//   bytes: 4*M*H*W + 5*M*OH*OW
//   bound: memory

#include "common.cuh"

extern "C" __global__ void maxpool_forward(
    const float* __restrict__ x,       // (M * H * W)
    float* __restrict__ y,             // (M * OH * OW)
    unsigned char* __restrict__ mask,  // (M * OH * OW)
    long long M,
    int H, int W, int OH, int OW, int KH, int KW, int SH, int SW, int PH, int PW)
{
  FOR_EACH(k, M * OH * OW) {
    int i, j;  // range [0, OH), [0, OW)
    long long plane = divide(divide(k, OW, j), OH, i);
    const float* map = x + plane * H * W;  // (H, W)
    int top = i * SH - PH, left = j * SW - PW;
    int first_p = max(-top, 0), last_p = min(KH, H - top);  // the taps that lie on the map
    int first_q = max(-left, 0), last_q = min(KW, W - left);
    int winner = first_p * KW + first_q;
    float best = map[(long long)(top + first_p) * W + left + first_q];
    for (int p = first_p; p < last_p; ++p) {
      for (int q = first_q; q < last_q; ++q) {
        float candidate = map[(long long)(top + p) * W + left + q];
        // A comparison with NaN is false: the first NaN wins, and then nothing beats it.
        if (!(candidate <= best) && best == best) {
          best = candidate;
          winner = p * KW + q;
        }
      }
    }
    y[k] = best;
    mask[k] = (unsigned char)winner;
  }
}

extern "C" __global__ void mask_scatter(
    const float* __restrict__ small,         // (M * OH * OW)
    const unsigned char* __restrict__ mask,  // (M * OH * OW)
    float* __restrict__ large,               // (M * H * W)
    long long M,
    int H, int W, int OH, int OW, int KH, int KW, int SH, int SW, int PH, int PW)
{
  FOR_EACH(k, M * H * W) {
    int h, w;  // range [0, H), [0, W)
    long long plane = divide(divide(k, W, w), H, h);
    // The windows over (h, w): i*SH <= h + PH < i*SH + KH.
    int last_i = min((h + PH) / SH, OH - 1), last_j = min((w + PW) / SW, OW - 1);
    float sum = 0.0f;
    for (int i = last_i; i >= 0 && h + PH - i * SH < KH; --i) {
      for (int j = last_j; j >= 0 && w + PW - j * SW < KW; --j) {
        long long at = (plane * OH + i) * OW + j;
        int tap = (h + PH - i * SH) * KW + w + PW - j * SW;
        if (mask[at] == tap) sum += small[at];
      }
    }
    large[k] = sum;
  }
}

extern "C" __global__ void mask_gather(
    const float* __restrict__ large,         // (M * H * W)
    const unsigned char* __restrict__ mask,  // (M * OH * OW)
    float* __restrict__ small,               // (M * OH * OW)
    long long M,
    int H, int W, int OH, int OW, int KH, int KW, int SH, int SW, int PH, int PW)
{
  FOR_EACH(k, M * OH * OW) {
    int i, j;  // range [0, OH), [0, OW)
    long long plane = divide(divide(k, OW, j), OH, i);
    int p = mask[k] / KW, q = mask[k] % KW;
    int h = i * SH - PH + p, w = j * SW - PW + q;
    // A mask is data, and data may be wrong: never follow it off the map.
    bool inside = p < KH && h >= 0 && h < H && w >= 0 && w < W;
    small[k] = inside ? large[(plane * H + h) * W + w] : 0.0f;
  }
}
