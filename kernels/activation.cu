// Activations, elementwise, on arrays of any shape. See cae_raw/ops/activation.py.
//
// relu_forward: y = max(x, 0), NaN stays NaN
//   shapes: x, y: n elements
//   flops: n
//   bytes: 8*n
//   bound: memory
// relu_backward: dx = dy * (y > 0)
//   shapes: dy, y, dx: n elements
//   flops: n
//   bytes: 12*n
//   bound: memory
// tanh_forward: y = tanh(x)
//   shapes: x, y: n elements
//   flops: 20*n
//   bytes: 8*n
//   bound: memory
// tanh_backward: dx = dy * (1 - y^2)
//   shapes: dy, y, dx: n elements
//   flops: 3*n
//   bytes: 12*n
//   bound: memory

#include "common.cuh"

extern "C" __global__ void relu_forward(
    const float* __restrict__ x,  // (n)
    float* __restrict__ y,        // (n)
    long long n)
{
  FOR_EACH(k, n) y[k] = relu(x[k]);
}

extern "C" __global__ void relu_backward(
    const float* __restrict__ dy,  // (n)
    const float* __restrict__ y,   // (n)
    float* __restrict__ dx,        // (n)
    long long n)
{
  // A product, not a choice, so that a NaN in dy is seen even where the unit is off.
  FOR_EACH(k, n) dx[k] = dy[k] * (y[k] > 0.0f ? 1.0f : 0.0f);
}

extern "C" __global__ void tanh_forward(
    const float* __restrict__ x,  // (n)
    float* __restrict__ y,        // (n)
    long long n)
{
  FOR_EACH(k, n) y[k] = tanhf(x[k]);
}

extern "C" __global__ void tanh_backward(
    const float* __restrict__ dy,  // (n)
    const float* __restrict__ y,   // (n)
    float* __restrict__ dx,        // (n)
    long long n)
{
  FOR_EACH(k, n) dx[k] = dy[k] * (1.0f - y[k] * y[k]);
}
