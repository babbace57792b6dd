// One step of an optimizer over the flat vector of all parameters. See cae_raw/ops/optim.py.
//
// optim_advance: control = (lr, t + 1, 1 - beta1^(t+1), 1 - beta2^(t+1)) for Adam, (lr, t + 1) else
//   shapes: control (4) float64
//   flops: 4
//   bytes: 64
//   bound: latency; one thread
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
// Step count and learning rate are read from device memory, so that a recorded sequence of launches
// can be replayed. l2 may be null: no penalty; else it adds 3*P FLOPs and 4*P bytes.

#include "common.cuh"

enum Control { LR, STEP, CORRECTION1, CORRECTION2 };

extern "C" __global__ void optim_advance(
    double* __restrict__ control,  // (4)
    double beta1, double beta2, int adam)
{
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  double t = control[STEP] + 1.0;
  control[STEP] = t;
  if (adam) {
    control[CORRECTION1] = 1.0 - pow(beta1, t);
    control[CORRECTION2] = 1.0 - pow(beta2, t);
  }
}

extern "C" __global__ void sgd_step(
    float* __restrict__ p,               // (P)
    const float* __restrict__ g,         // (P)
    float* __restrict__ v,               // (P)
    const float* __restrict__ l2,        // (P) or null
    const double* __restrict__ control,  // (4)
    long long P, float momentum)
{
  float lr = (float)control[LR];
  FOR_EACH(k, P) {
    float velocity = momentum * v[k] + g[k];
    if (l2) velocity += 2.0f * l2[k] * p[k];
    v[k] = velocity;
    p[k] -= lr * velocity;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) adam_step(
    float* __restrict__ p,               // (P)
    const float* __restrict__ g,         // (P)
    float* __restrict__ m,               // (P)
    float* __restrict__ v,               // (P)
    const float* __restrict__ l2,        // (P) or null
    const double* __restrict__ control,  // (4)
    long long P, float beta1, float beta2,
    float rest1, float rest2,  // 1 - beta1 and 1 - beta2, rounded after the subtraction
    float eps)
{
  // Few GPUs are fast in float64, so one thread per block does this part.
  __shared__ float step, scale;
  if (threadIdx.x == 0) {
    step = (float)(control[LR] / control[CORRECTION1]);
    scale = (float)(1.0 / sqrt(control[CORRECTION2]));
  }
  __syncthreads();
  FOR_EACH(k, P) {
    float gradient = g[k];
    if (l2) gradient += 2.0f * l2[k] * p[k];
    float mean = beta1 * m[k] + rest1 * gradient;
    float square = beta2 * v[k] + rest2 * (gradient * gradient);
    m[k] = mean;
    v[k] = square;
    p[k] -= step * mean / (sqrtf(square) * scale + eps);
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
