// The fully connected layer: three matrix products over one tile loop. See cae_raw/ops/linear.py.
//
// linear_forward: y[n,o] = act(b[o] + sum over i of x[n,i] * w[o,i])
//   shapes: x (N, I), w (O, I), b (O), y (N, O)
//   constants: THREADS, TILE_M, TILE_N, TILE_K, THREAD_M, THREAD_N (see the drawing)
//   flops: 2*N*O*I
//   bytes: 4*(N*I + O*I + splits*N*O + O)
//   bound: arithmetic for batches above about 30, else memory (w is read once)
// linear_backward_input: dx[n,i] = sum over o of dy[n,o] * w[o,i]
//   shapes: dy (N, O), w (O, I), dx (N, I)
//   flops: 2*N*O*I
//   bytes: 4*(N*O + O*I + splits*N*I)
//   bound: as linear_forward
// linear_backward_weight: dw[o,i] = sum over n of dy[n,o] * x[n,i]
//   shapes: dy (N, O), x (N, I), dw (O, I)
//   flops: 2*N*O*I
//   bytes: 4*(N*I + N*O + splits*O*I)
//   bound: as linear_forward, with dw written once
// linear_combine: out[m,n] = act(b[n] + sum over s of partial[s,m,n])
//   shapes: partial (splits, M, N), b (N) or null, out (M, N)
//   flops: splits*M*N
//   bytes: 4*(splits + 1)*M*N
//   bound: memory
// linear_backward_bias: db[o] = sum over n of dy[n,o]
//   shapes: dy (N, O), db (O)
//   flops: N*O
//   bytes: 4*(N*O + O)
//   bound: memory
//
// All three products are out (M, N) = sum over k of A(m,k) * B(k,n). A block owns a tile of out and
// walks along k; a thread owns THREAD_M x THREAD_N of its sums in registers:
//
//                   B tile  TILE_K x TILE_N            one step over k costs a thread
//                  +-----------------------+           THREAD_M + THREAD_N shared reads
//                  |                       |           for THREAD_M * THREAD_N additions
//                  +-----------------------+
//   A tile   +--+  +-----------------------+
//   TILE_M   |  |  |  out tile  [][] thread |
//   x TILE_K |  |  |            [][]        |
//            +--+  +-----------------------+
//
// There are two tiles of each operand: one is written while the other is read, and the values of the
// next are on their way in registers (operand.cuh), so that a step has one barrier. Gain over one tile
// and scalar reads between two barriers, counted for sm_90: 78 % instead of 53 % of the instructions
// are multiply-adds. Not measured on a GPU yet.
//
// A product with few tiles would leave most of the GPU idle (a batch of 128 through 6144 -> 1568 has
// 50). Then k is cut into `splits` ranges, each block does one and linear_combine adds them in order.

#include "common.cuh"
#include "operand.cuh"

// Four more floats per row keep rows 16-byte aligned and spread the transposing stores over banks.
constexpr int PAD = 4;

// tile[k][row] from what the threads hold of an operand.
template <bool K_RUNS, int ROWS>
__device__ __forceinline__ void write(float (&tile)[TILE_K][ROWS + PAD],
                                      const Operand<K_RUNS, ROWS>& from) {
#pragma unroll
  for (int m = 0; m < from.MINE; ++m) {
    const int row = from.row_of(m), k = from.word_of(m);
    const float4 v = from.held[m][0];
    if (K_RUNS) {
      tile[k][row] = v.x;
      tile[k + 1][row] = v.y;
      tile[k + 2][row] = v.z;
      tile[k + 3][row] = v.w;
    } else {
      *(float4*)&tile[k][row] = v;
    }
  }
}

template <bool A_K_RUNS, bool B_K_RUNS>
__device__ void multiply(const float* A, int pitch_a, const float* B, int pitch_b, const float* b,
                         float* out, int M, int N, int K, int k_per_split, int splits,
                         int activation) {
  __shared__ __align__(16) float a_tile[2][TILE_K][TILE_M + PAD];
  __shared__ __align__(16) float b_tile[2][TILE_K][TILE_N + PAD];
  constexpr int ACROSS = TILE_N / THREAD_N;  // threads along n
  const int m_local = threadIdx.x / ACROSS * THREAD_M;
  const int n_local = threadIdx.x % ACROSS * THREAD_N;
  const int tiles_m = ceil_div(M, TILE_M), tiles_n = ceil_div(N, TILE_N);
  int buffer = 0;
  FOR_EACH_BLOCK(piece, tiles_m * tiles_n * splits) {
    // Tiles that share rows of B (the weights, usually the larger operand) come one after another.
    int tile_m, tile_n;
    int split = divide_piece(divide_piece(piece, tiles_m, tile_m), tiles_n, tile_n);
    int m0 = tile_m * TILE_M, n0 = tile_n * TILE_N;
    int k_begin = split * k_per_split, k_end = min(k_begin + k_per_split, K);
    Operand<A_K_RUNS, TILE_M> left(A, pitch_a, m0, M);
    Operand<B_K_RUNS, TILE_N> right(B, pitch_b, n0, N);
    float sum[THREAD_M][THREAD_N] = {};
    left.read(k_begin, k_end);
    right.read(k_begin, k_end);
    for (int k0 = k_begin; k0 < k_end; k0 += TILE_K) {
      write(a_tile[buffer], left);
      write(b_tile[buffer], right);
      // The other buffer is free: whoever still read it has not come past the last barrier.
      __syncthreads();
      if (k0 + TILE_K < k_end) {
        left.read(k0 + TILE_K, k_end);
        right.read(k0 + TILE_K, k_end);
      }
#pragma unroll
      for (int k = 0; k < TILE_K; ++k) {
        float a_k[THREAD_M], b_k[THREAD_N];
#pragma unroll
        for (int m = 0; m < THREAD_M; ++m) a_k[m] = a_tile[buffer][k][m_local + m];
#pragma unroll
        for (int n = 0; n < THREAD_N; ++n) b_k[n] = b_tile[buffer][k][n_local + n];
#pragma unroll
        for (int m = 0; m < THREAD_M; ++m) {
#pragma unroll
          for (int n = 0; n < THREAD_N; ++n) sum[m][n] = fmaf(a_k[m], b_k[n], sum[m][n]);
        }
      }
      buffer ^= 1;
    }
    float* part = out + (long long)split * M * N;  // (M, N)
#pragma unroll
    for (int m = 0; m < THREAD_M; ++m) {
#pragma unroll
      for (int n = 0; n < THREAD_N; ++n) {
        int row = m0 + m_local + m, column = n0 + n_local + n;
        if (row < M && column < N) {
          float v = sum[m][n];
          if (splits == 1) v = activate(b ? v + b[column] : v, activation);
          part[(long long)row * N + column] = v;
        }
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) linear_forward(
    const float* __restrict__ x,  // (N, I)
    const float* __restrict__ w,  // (O, I)
    const float* __restrict__ b,  // (O)
    float* __restrict__ y,        // (splits * N * O)
    int N, int I, int O, int k_per_split, int splits, int activation)
{
  multiply<true, true>(x, I, w, I, b, y, N, O, I, k_per_split, splits, activation);
}

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) linear_backward_input(
    const float* __restrict__ dy,  // (N, O)
    const float* __restrict__ w,   // (O, I)
    float* __restrict__ dx,        // (splits * N * I)
    int N, int I, int O, int k_per_split, int splits)
{
  multiply<true, false>(dy, O, w, I, nullptr, dx, N, I, O, k_per_split, splits, ACTIVATION_NONE);
}

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) linear_backward_weight(
    const float* __restrict__ dy,  // (N, O)
    const float* __restrict__ x,   // (N, I)
    float* __restrict__ dw,        // (splits * O * I)
    int N, int I, int O, int k_per_split, int splits)
{
  multiply<false, false>(dy, O, x, I, nullptr, dw, O, I, N, k_per_split, splits, ACTIVATION_NONE);
}

extern "C" __global__ void linear_combine(
    const float* __restrict__ partial,  // (splits * M * N)
    const float* __restrict__ b,        // (N) or null
    float* __restrict__ out,            // (M * N)
    long long M, int N, int splits, int activation)
{
  FOR_EACH(k, M * N) {
    int n;
    divide(k, N, n);
    float sum = 0.0f;
    for (int s = 0; s < splits; ++s) sum += partial[s * (M * N) + k];
    out[k] = activate(b ? sum + b[n] : sum, activation);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) linear_backward_bias(
    const float* __restrict__ dy,  // (N, O)
    float* __restrict__ db,        // (O)
    int N, int O)
{
  column_sums<THREADS>(dy, db, N, O);
}
