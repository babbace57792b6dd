// One step of an optimizer over the flat vector of all parameters. See cae_raw/ops/optim.py.
//
// sgd_step: v = momentum*v + g + 2*l2*p; p = p - lr*v
//   shapes: p, g, v, l2 (P), control (4) float64
//   flops: 4*P
//   bytes: 20*P
//   bound: memory
// adam_step: m = beta1*m + (1-beta1)*g; v = beta2*v + (1-beta2)*g^2; p = p - step*m / (sqrt(v)/c + eps)
//   shapes: p, g, m, v, l2 (P), control (4) float64; g stands for g + 2*l2*p
//   flops: 13*P
//   bytes: 28*P
//   bound: memory
// penalty: partial[r] = sum of l2 * p^2 over piece r, in float64
//   shapes: p, l2 (P), partial (R) float64, R = ceil(P / PIECE)
//   constants: THREADS, a multiple of 32; PIECE, elements per partial sum
//   flops: 3*P
//   bytes: 8*P
//   bound: memory
//
// l2 may be null: no penalty; else it adds 3*P FLOPs and 4*P bytes.
//
// Step count and learning rate are read from device memory, so that a recorded sequence of launches
// can be replayed, and the step counts itself: every block reads the count, and the one that is last
// to have done so writes the next. Nothing waits for it.
//
//      control:  lr | t | how many blocks have read t, 0 between steps | unused
//
// A thread takes four neighbours at a time, 16 bytes of each vector. The grid is what a large GPU
// holds at once, because each block begins with a few float64 operations.
// Gain over one element at a time and a launch that counted: not measured on a GPU yet.

#include "common.cuh"

enum Control { LR, STEP, READERS };

// The number of this step, from 1 on; called once by one thread of each block.
__device__ double count_step(double* control) {
  const double t = control[STEP] + 1.0;
  __threadfence();  // it is read before it is known to be
  unsigned* readers = (unsigned*)&control[READERS];
  if (atomicAdd(readers, 1u) == gridDim.x - 1) {
    control[STEP] = t;
    *readers = 0;
  }
  return t;
}

extern "C" __global__ void __launch_bounds__(THREADS) sgd_step(
    float* __restrict__ p,         // (P)
    const float* __restrict__ g,   // (P)
    float* __restrict__ v,         // (P)
    const float* __restrict__ l2,  // (P) or null
    double* __restrict__ control,  // (4)
    long long P, float momentum)
{
  if (threadIdx.x == 0) count_step(control);
  const float lr = (float)control[LR];
  const bool wide = is_aligned(p, 16) && is_aligned(g, 16) && is_aligned(v, 16) && is_aligned(l2, 16);
  const auto step = [&](float& weight, float gradient, float& velocity, float penalty) {
    velocity = momentum * velocity + gradient;
    if (l2) velocity += 2.0f * penalty * weight;
    weight -= lr * velocity;
  };
  FOR_EACH(quad, ceil_div<long long>(P, 4)) {
    const long long k = 4 * quad, count = P - k;
    float4 weight = read4(p + k, count, wide), velocity = read4(v + k, count, wide);
    const float4 gradient = read4(g + k, count, wide);
    const float4 penalty = read4(l2 + k, l2 ? count : 0, wide);
    step(weight.x, gradient.x, velocity.x, penalty.x);
    step(weight.y, gradient.y, velocity.y, penalty.y);
    step(weight.z, gradient.z, velocity.z, penalty.z);
    step(weight.w, gradient.w, velocity.w, penalty.w);
    write4(v + k, velocity, count, wide);
    write4(p + k, weight, count, wide);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) adam_step(
    float* __restrict__ p,         // (P)
    const float* __restrict__ g,   // (P)
    float* __restrict__ m,         // (P)
    float* __restrict__ v,         // (P)
    const float* __restrict__ l2,  // (P) or null
    double* __restrict__ control,  // (4)
    long long P, double beta1, double beta2, float eps)
{
  // Few GPUs are fast in float64, so one thread per block does this part.
  __shared__ float rate, scale;
  if (threadIdx.x == 0) {
    const double t = count_step(control);
    rate = (float)(control[LR] / (1.0 - pow(beta1, t)));
    scale = (float)(1.0 / sqrt(1.0 - pow(beta2, t)));
  }
  __syncthreads();
  const float keep1 = (float)beta1, rest1 = (float)(1.0 - beta1);
  const float keep2 = (float)beta2, rest2 = (float)(1.0 - beta2);
  const bool wide = is_aligned(p, 16) && is_aligned(g, 16) && is_aligned(m, 16) &&
                    is_aligned(v, 16) && is_aligned(l2, 16);
  const auto step = [&](float& weight, float gradient, float& mean, float& square, float penalty) {
    if (l2) gradient += 2.0f * penalty * weight;
    mean = keep1 * mean + rest1 * gradient;
    square = keep2 * square + rest2 * (gradient * gradient);
    weight -= rate * mean / (sqrtf(square) * scale + eps);
  };
  FOR_EACH(quad, ceil_div<long long>(P, 4)) {
    const long long k = 4 * quad, count = P - k;
    float4 weight = read4(p + k, count, wide), mean = read4(m + k, count, wide);
    float4 square = read4(v + k, count, wide);
    const float4 gradient = read4(g + k, count, wide);
    const float4 penalty = read4(l2 + k, l2 ? count : 0, wide);
    step(weight.x, gradient.x, mean.x, square.x, penalty.x);
    step(weight.y, gradient.y, mean.y, square.y, penalty.y);
    step(weight.z, gradient.z, mean.z, square.z, penalty.z);
    step(weight.w, gradient.w, mean.w, square.w, penalty.w);
    write4(m + k, mean, count, wide);
    write4(v + k, square, count, wide);
    write4(p + k, weight, count, wide);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) penalty(
    const float* __restrict__ p,   // (P)
    const float* __restrict__ l2,  // (P)
    double* __restrict__ partial,  // (R)
    long long P, long long R)
{
  FOR_EACH_BLOCK(piece, R) {
    long long begin = (long long)piece * PIECE, end = min(begin + PIECE, P);
    double sum = 0.0;
    for (long long k = begin + threadIdx.x; k < end; k += THREADS) {
      double wide = p[k];
      sum += l2[k] * wide * wide;
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) partial[piece] = sum;
  }
}
