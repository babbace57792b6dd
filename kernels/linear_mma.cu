// The three products of the fully connected layer on the tensor cores: operands rounded to tf32 or
// bfloat16, or (SPLIT) split into two numbers in tf32; sums in float32. See cae_raw/ops/linear.py;
// formulas and shapes are those of linear.cu.
//
// linear_forward_mma: y[n,o] = act(b[o] + sum over i of round(x[n,i]) * round(w[o,i]))
//   shapes: x (N, I), w (O, I), b (O), y (N, O)
//   constants: THREADS, TILE_M, TILE_N, TILE_K, WARPS_M (see the drawing); BF16, 0 for tf32; SPLIT
//   flops: 2*N*O*I
//   bytes: 4*(N*I + O*I + splits*N*O + O)
//   bound: memory for batches below about 80 (split), 200 (tf32) or 400 (bf16), else arithmetic
// linear_backward_input_mma: dx[n,i] = sum over o of round(dy[n,o]) * round(w[o,i])
//   shapes: dy (N, O), w (O, I), dx (N, I)
//   flops: 2*N*O*I
//   bytes: 4*(N*O + O*I + splits*N*I)
//   bound: as linear_forward_mma
// linear_backward_weight_mma: dw[o,i] = sum over n of round(dy[n,o]) * round(x[n,i])
//   shapes: dy (N, O), x (N, I), dw (O, I)
//   flops: 2*N*O*I
//   bytes: 4*(N*I + N*O + splits*O*I)
//   bound: as linear_forward_mma, with dw written once
//
// All three are out (M, N) = sum over k of A(m,k) * B(k,n), k cut into `splits` ranges where tiles
// are few, as in linear.cu; linear_combine adds the ranges. A block owns a tile of out:
//
//                B tile  WORDS x TILE_N          device memory: float32
//               +---------------------+            | 16-byte reads, one step ahead, held in registers
//               |                     |            v
//   A tile      +----------+----------+          rounded to words, two tiles of A and two of B in
//   TILE_M +--+ | warp 0   | warp 1   |          shared memory: one is written while the other is read,
//   x WORDS|  | |    sum[][]          |          so that a step has one barrier
//          |  | +----------+----------+            |
//          |  | | warp 2   | warp 3   |            v
//          +--+ +----------+----------+          fragments and 16x8 sums of mma.cuh in registers
//
// Gain over linear.cu: not measured on a GPU yet.

#include "common.cuh"
#include "mma.cuh"
#include "operand.cuh"

constexpr int WORDS = TILE_K / PER_WORD;  // along k
constexpr int WARPS_N = THREADS / WARP / WARPS_M;
constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;
constexpr int UNROLL = SPLIT ? 1 : WORDS / 8;  // with SPLIT a step is long, and registers are few

// What shared memory keeps of a number, or of two neighbours along k: their word. With SPLIT, the
// number itself: to split it when it is read costs three instructions, but two words would take twice
// the reads and twice the memory.
__device__ __forceinline__ unsigned kept(float v, float next) {
  return SPLIT ? __float_as_uint(v) : word(v, next);
}

// Word i of a fragment from what was kept.
template <int n>
__device__ __forceinline__ void set_kept(Fragment<n>& fragment, int i, unsigned kept) {
  if (SPLIT) {
    fragment.set(i, __uint_as_float(kept));
  } else {
    fragment.big[i] = kept;
  }
}

// How an operand's tile lies in shared memory: with K_RUNS, k is its contiguous axis, else the rows
// are. The pitch keeps pieces 16-byte aligned and puts the 32 words of a fragment into 32 banks.
template <bool K_RUNS, int ROWS>
struct Tile {
  using Source = Operand<K_RUNS, ROWS, PER_WORD>;
  static constexpr int PITCH = K_RUNS ? WORDS + 4 : ROWS + 8;

  unsigned words[(K_RUNS ? ROWS : WORDS) * PITCH];

  static __device__ __forceinline__ int at(int row, int word) {
    return K_RUNS ? row * PITCH + word : word * PITCH + row;
  }

  __device__ __forceinline__ void write(const Source& from) {
#pragma unroll
    for (int m = 0; m < Source::MINE; ++m) {
      const float4 a = from.held[m][0], b = from.held[m][PER_WORD - 1];
      uint4 piece;
      if (K_RUNS && BF16) {  // neighbours along k lie in one float4
        piece = {kept(a.x, a.y), kept(a.z, a.w), kept(b.x, b.y), kept(b.z, b.w)};
      } else {
        piece = {kept(a.x, b.x), kept(a.y, b.y), kept(a.z, b.z), kept(a.w, b.w)};
      }
      *(uint4*)&words[at(Source::row_of(m), Source::word_of(m))] = piece;
    }
  }
};

template <bool A_K_RUNS, bool B_K_RUNS>
__device__ void multiply(const float* A, int pitch_a, const float* B, int pitch_b, const float* b,
                         float* out, int M, int N, int K, int k_per_split, int splits,
                         int activation) {
  using ATile = Tile<A_K_RUNS, TILE_M>;
  using BTile = Tile<B_K_RUNS, TILE_N>;
  __shared__ __align__(16) ATile a_tile[2];
  __shared__ __align__(16) BTile b_tile[2];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = lane / 4, column = lane % 4;  // as in mma.cuh
  const int m_local = warp / WARPS_N * WARP_M, n_local = warp % WARPS_N * WARP_N;
  const int tiles_m = ceil_div(M, TILE_M), tiles_n = ceil_div(N, TILE_N);
  const bool pairs = N % 2 == 0 && is_aligned(out, 8);
  int buffer = 0;
  FOR_EACH_BLOCK(piece, tiles_m * tiles_n * splits) {
    int tile_m, tile_n;
    const int split = divide_piece(divide_piece(piece, tiles_m, tile_m), tiles_n, tile_n);
    const int m0 = tile_m * TILE_M, n0 = tile_n * TILE_N;
    const int k_begin = split * k_per_split, k_end = min(k_begin + k_per_split, K);
    typename ATile::Source left(A, pitch_a, m0, M);
    typename BTile::Source right(B, pitch_b, n0, N);
    float sum[WARP_M / 16][WARP_N / 8][4] = {};
    left.read(k_begin, k_end);
    right.read(k_begin, k_end);
    for (int k0 = k_begin; k0 < k_end; k0 += TILE_K) {
      a_tile[buffer].write(left);
      b_tile[buffer].write(right);
      // The other buffer is free: whoever still read it has not come past the last barrier.
      __syncthreads();
      if (k0 + TILE_K < k_end) {
        left.read(k0 + TILE_K, k_end);
        right.read(k0 + TILE_K, k_end);
      }
#pragma unroll UNROLL
      for (int first = 0; first < WORDS; first += 8) {
        Fragment<4> a_words[WARP_M / 16];
        Fragment<2> b_words;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
          for (int part = 0; part < 4; ++part) {
            const int m = m_local + i * 16 + row + part % 2 * 8;
            const int k = first + column + part / 2 * 4;
            set_kept(a_words[i], part, a_tile[buffer].words[ATile::at(m, k)]);
          }
        }
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j) {
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const int n = n_local + j * 8 + row, k = first + column + part * 4;
            set_kept(b_words, part, b_tile[buffer].words[BTile::at(n, k)]);
          }
#pragma unroll
          for (int i = 0; i < WARP_M / 16; ++i) add_product(sum[i][j], a_words[i], b_words);
        }
      }
      buffer ^= 1;
    }
    float* part = out + (long long)split * M * N;  // (M, N)
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
      for (int j = 0; j < WARP_N / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int m = m0 + m_local + i * 16 + row + half * 8;
          const int n = n0 + n_local + j * 8 + column * 2;
          if (m >= M || n >= N) continue;
          float2 v = {sum[i][j][half * 2], sum[i][j][half * 2 + 1]};
          const bool both = n + 1 < N;
          if (splits == 1) {
            v.x = activate(b ? v.x + b[n] : v.x, activation);
            if (both) v.y = activate(b ? v.y + b[n + 1] : v.y, activation);
          }
          float* to = part + (long long)m * N + n;
          if (pairs) {
            *(float2*)to = v;
          } else {
            to[0] = v.x;
            if (both) to[1] = v.y;
          }
        }
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, MMA_BLOCKS) linear_forward_mma(
    const float* __restrict__ x,  // (N, I)
    const float* __restrict__ w,  // (O, I)
    const float* __restrict__ b,  // (O)
    float* __restrict__ y,        // (splits * N * O)
    int N, int I, int O, int k_per_split, int splits, int activation)
{
  multiply<true, true>(x, I, w, I, b, y, N, O, I, k_per_split, splits, activation);
}

extern "C" __global__ void __launch_bounds__(THREADS, MMA_BLOCKS) linear_backward_input_mma(
    const float* __restrict__ dy,  // (N, O)
    const float* __restrict__ w,   // (O, I)
    float* __restrict__ dx,        // (splits * N * I)
    int N, int I, int O, int k_per_split, int splits)
{
  multiply<true, false>(dy, O, w, I, nullptr, dx, N, I, O, k_per_split, splits, ACTIVATION_NONE);
}

extern "C" __global__ void __launch_bounds__(THREADS, MMA_BLOCKS) linear_backward_weight_mma(
    const float* __restrict__ dy,  // (N, O)
    const float* __restrict__ x,   // (N, I)
    float* __restrict__ dw,        // (splits * O * I)
    int N, int I, int O, int k_per_split, int splits)
{
  multiply<false, false>(dy, O, x, I, nullptr, dw, O, I, N, k_per_split, splits, ACTIVATION_NONE);
}
