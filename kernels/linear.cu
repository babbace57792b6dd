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
// A product with few tiles would leave most of the GPU idle (a batch of 128 through 6144 -> 1568 has
// 50). Then k is cut into `splits` ranges, each block does one and linear_combine adds them in order.

#include "common.cuh"

// Four more floats per row keep rows 16-byte aligned and spread the transposing stores over banks.
constexpr int PAD = 4;

// tile[k][row] = source(row0 + row, k0 + k), 0 outside. K_RUNS: k is the contiguous axis of source.
template <bool K_RUNS, int ROWS>
__device__ __forceinline__ void load_tile(float (&tile)[TILE_K][ROWS + PAD], const float* source,
                                          long long pitch, int row0, int rows, int k0, int k_end) {
  for (int e = threadIdx.x; e < TILE_K * ROWS; e += THREADS) {
    // Neighbouring threads read neighbouring addresses.
    int k = K_RUNS ? e % TILE_K : e / ROWS;
    int row = K_RUNS ? e / TILE_K : e % ROWS;
    bool inside = row0 + row < rows && k0 + k < k_end;
    long long at = K_RUNS ? (row0 + row) * pitch + k0 + k : (k0 + k) * pitch + row0 + row;
    tile[k][row] = inside ? source[at] : 0.0f;
  }
}

template <bool A_K_RUNS, bool B_K_RUNS>
__device__ void multiply(const float* A, long long pitch_a, const float* B, long long pitch_b,
                         const float* b, float* out, int M, int N, int K, int k_per_split,
                         int splits, int activation) {
  __shared__ __align__(16) float a_tile[TILE_K][TILE_M + PAD];
  __shared__ __align__(16) float b_tile[TILE_K][TILE_N + PAD];
  constexpr int ACROSS = TILE_N / THREAD_N;  // threads along n
  const int m_local = threadIdx.x / ACROSS * THREAD_M;
  const int n_local = threadIdx.x % ACROSS * THREAD_N;
  const int tiles_m = ceil_div(M, TILE_M), tiles_n = ceil_div(N, TILE_N);
  FOR_EACH_BLOCK(piece, tiles_m * tiles_n * splits) {
    // Tiles that share rows of B (the weights, usually the larger operand) come one after another.
    int tile_m, tile_n;
    int split = divide_piece(divide_piece(piece, tiles_m, tile_m), tiles_n, tile_n);
    int m0 = tile_m * TILE_M, n0 = tile_n * TILE_N;
    int k_begin = split * k_per_split, k_end = min(k_begin + k_per_split, K);
    float sum[THREAD_M][THREAD_N] = {};
    for (int k0 = k_begin; k0 < k_end; k0 += TILE_K) {
      load_tile<A_K_RUNS, TILE_M>(a_tile, A, pitch_a, m0, M, k0, k_end);
      load_tile<B_K_RUNS, TILE_N>(b_tile, B, pitch_b, n0, N, k0, k_end);
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < TILE_K; ++k) {
        float left[THREAD_M], right[THREAD_N];
#pragma unroll
        for (int m = 0; m < THREAD_M; ++m) left[m] = a_tile[k][m_local + m];
#pragma unroll
        for (int n = 0; n < THREAD_N; ++n) right[n] = b_tile[k][n_local + n];
#pragma unroll
        for (int m = 0; m < THREAD_M; ++m) {
#pragma unroll
          for (int n = 0; n < THREAD_N; ++n) sum[m][n] = fmaf(left[m], right[n], sum[m][n]);
        }
      }
      __syncthreads();  // before the next load overwrites the tiles
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
