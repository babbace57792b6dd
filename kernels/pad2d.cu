// Zero padding of the two spatial axes, and the crop that undoes it. See cae_raw/ops/pad2d.py.
//
// pad2d_forward: y[m,i,j] = x[m, i - top, j - left], 0 outside x
//   shapes: x (M, H, W), y (M, PH, PW), with M = N*C planes
//   flops: 0
//   bytes: 4*M*(H*W + PH*PW)
//   bound: memory
// pad2d_backward: dx[m,h,w] = dy[m, h + top, w + left]
//   shapes: dy (M, PH, PW), dx (M, H, W), with M = N*C planes
//   flops: 0
//   bytes: 8*M*H*W
//   bound: memory

#include "common.cuh"

extern "C" __global__ void pad2d_forward(
    const float* __restrict__ x,  // (M * H * W)
    float* __restrict__ y,        // (M * PH * PW)
    long long M,
    int H, int W, int PH, int PW, int top, int left)
{
  FOR_EACH(k, M * PH * PW) {
    int i, j;  // range [0, PH), [0, PW)
    long long plane = divide(divide(k, PW, j), PH, i);
    int h = i - top, w = j - left;
    bool inside = h >= 0 && h < H && w >= 0 && w < W;
    y[k] = inside ? x[(plane * H + h) * W + w] : 0.0f;
  }
}

extern "C" __global__ void pad2d_backward(
    const float* __restrict__ dy,  // (M * PH * PW)
    float* __restrict__ dx,        // (M * H * W)
    long long M,
    int H, int W, int PH, int PW, int top, int left)
{
  FOR_EACH(k, M * H * W) {
    int h, w;  // range [0, H), [0, W)
    long long plane = divide(divide(k, W, w), H, h);
    dx[k] = dy[(plane * PH + h + top) * PW + w + left];
  }
}
