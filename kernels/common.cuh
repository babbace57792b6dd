// What all kernel files share: index arithmetic, activations, sums in a fixed order.
//
// NVRTC compiles these files without any header, so nothing here needs one. A float sum never goes
// through an atomic: the order of additions is a property of the problem, not of the run, and the
// same inputs give the same bits on the same device whatever the grid.

#define WARP 32
#define ALL_LANES 0xffffffffu

// Visit k = 0 .. n-1, each once, from however many blocks there are.
#define FOR_EACH(k, n)                                                         \
  for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < (n); \
       k += (long long)gridDim.x * blockDim.x)

// The same for pieces of work that a whole block does together, at most 2^31 of them. All threads of
// a block see the same pieces, so that the work may contain __syncthreads().
#define FOR_EACH_BLOCK(piece, pieces) \
  for (unsigned piece = blockIdx.x; piece < (unsigned)(pieces); piece += gridDim.x)

template <class T>
__device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// a / b for a >= 0, and the remainder. A 64-bit division costs several times a 32-bit one, and
// almost every tensor has fewer than 2^32 elements.
__device__ __forceinline__ long long divide(long long a, int b, int& remainder) {
  if (a >> 32 == 0) {
    unsigned quotient = (unsigned)a / (unsigned)b;
    remainder = (int)((unsigned)a - quotient * (unsigned)b);
    return quotient;
  }
  long long quotient = a / b;
  remainder = (int)(a - quotient * b);
  return quotient;
}

__device__ __forceinline__ bool is_aligned(const void* p, int bytes) {
  return (unsigned long long)p % bytes == 0;
}

// from[0..3], those from `count` on being 0. wide: `from` is a multiple of 16 bytes.
__device__ __forceinline__ float4 read4(const float* from, long long count, bool wide) {
  if (wide && count >= 4) return *(const float4*)from;
  float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
  if (count > 0) v.x = from[0];
  if (count > 1) v.y = from[1];
  if (count > 2) v.z = from[2];
  if (count > 3) v.w = from[3];
  return v;
}

// to[0..3] = v, those from `count` on left alone.
__device__ __forceinline__ void write4(float* to, float4 v, long long count, bool wide) {
  if (wide && count >= 4) {
    *(float4*)to = v;
    return;
  }
  if (count > 0) to[0] = v.x;
  if (count > 1) to[1] = v.y;
  if (count > 2) to[2] = v.z;
  if (count > 3) to[3] = v.w;
}

// The codes of ops/activation.py.
enum Activation { ACTIVATION_NONE = 0, ACTIVATION_RELU = 1, ACTIVATION_TANH = 2 };

// !(v <= 0) instead of v > 0 lets NaN through.
__device__ __forceinline__ float relu(float v) { return !(v <= 0.0f) ? v : 0.0f; }

__device__ __forceinline__ float activate(float v, int activation) {
  if (activation == ACTIVATION_RELU) return relu(v);
  if (activation == ACTIVATION_TANH) return tanhf(v);
  return v;
}

// The same where a is the number of a piece of work.
__device__ __forceinline__ int divide_piece(unsigned a, int b, int& remainder) {
  unsigned quotient = a / (unsigned)b;
  remainder = (int)(a - quotient * b);
  return (int)quotient;
}

// The sum over the lanes of a warp; valid in lane 0.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    v += __shfl_down_sync(ALL_LANES, v, distance);
  }
  return v;
}

// The sum over a block of THREADS_IN_BLOCK threads (a multiple of 32); valid in thread 0.
template <int THREADS_IN_BLOCK, class T>
__device__ T block_sum(T v) {
  constexpr int WARPS = THREADS_IN_BLOCK / WARP;
  __shared__ T of_warp[WARPS];
  v = warp_sum(v);
  if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = v;
  __syncthreads();
  T sum = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < WARPS; ++i) sum += of_warp[i];
  }
  __syncthreads();  // before the next call overwrites of_warp
  return sum;
}

// out[m] = sum over r of rows[r,m], by blocks of THREADS_IN_BLOCK threads. A block takes 32
// neighbouring columns, so that a warp reads 128 bytes in one piece, and each of its warps takes
// every WARPS-th row:
//
//            columns 0..31
//   row 0    warp 0
//   row 1    warp 1         the sums of the warps are then added from top to bottom
//   ...
//   row 8    warp 0         (with eight warps)
template <int THREADS_IN_BLOCK>
__device__ void column_sums(const float* rows, float* out, long long R, long long M) {
  constexpr int WARPS = THREADS_IN_BLOCK / WARP;
  __shared__ float of_warp[WARPS][WARP];
  int column = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  FOR_EACH_BLOCK(piece, ceil_div<long long>(M, WARP)) {
    long long m = (long long)piece * WARP + column;
    float sum = 0.0f;
    if (m < M) {
      for (long long r = warp; r < R; r += WARPS) sum += rows[r * M + m];
    }
    of_warp[warp][column] = sum;
    __syncthreads();
    if (warp == 0 && m < M) {
      for (int i = 1; i < WARPS; ++i) sum += of_warp[i][column];
      out[m] = sum;
    }
    __syncthreads();  // before the next piece overwrites of_warp
  }
}
