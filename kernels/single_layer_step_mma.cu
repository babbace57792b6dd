// The fused single-layer step on the tensor cores, and a forward-only twin: single_layer_step.cu with
// its five products as small matrix products (mma.cuh). SPLIT = 0 (tf32) rounds the operands of all
// five to tf32, SPLIT = 1 (tf32x3) has float32's accuracy from three products for one. Sums, tanh, the
// two biases, the loss and dy are float32 in either.
//
// single_layer_step_mma: partial[r] = gradients (w1, b1, w2, b2) of gradient_scale/2 * sum (y-x)^2 over piece r
//   shapes: images (M, C, H, W) uint8, indices (N) int64, w1 (F, C, 3, 3), b1 (F), w2 (C, F, 3, 3), b2 (C), partial (R, P), totals (R, 2) float64
//   constants: C, F (at most 3 and 32), THREADS, DECODER_TANH, SPARSE, SPLIT, BF16 (always 0)
//   flops: 18*N*F*C*(4*(H+2)*(W+2) + H*W)
//   bytes: N*C*H*W + 4*R*(18*F*C + F + C)
//   bound: arithmetic
// single_layer_forward_mma: totals[r] = sum of (y - x)^2 over piece r; also the code and y where they are asked for
//   shapes: images (M, C, H, W) uint8, indices (N) int64, w1, b1, w2, b2 as above, code (N, F, H+2, W+2) or null, y (N, C, H, W) or null, totals (R, 2) float64
//   constants: as above
//   flops: 18*N*F*C*((H+2)*(W+2) + H*W)
//   bytes: N*C*H*W
//   bound: arithmetic
// single_layer_reduce_mma: gradients[m] = sum over r of partial[r,m]; total = sum over r of totals[r]
//   shapes: partial (R, P), totals (R, 2) float64, gradients (P), total (2) float64
//   constants: THREADS
//   flops: R*P + 2*R
//   bytes: 4*(R*P + P) + 16*(R + 1)
//   bound: latency
//
// Units, pieces and what is in shared memory are those of single_layer_step.cu. A warp multiplies
// 16 x 8 by 8 x 8 numbers. In all products the 16 rows are features, except in stage 2:
//
//   device    images, 1 byte per value           parameters, read once per piece
//                |                                   |
//   shared    x, dy (C, rows, pitch)   code (positions, 36)   w1, w2 (9*C, 36)   sums of stage 2
//                |                        |                       |                  |
//   registers
//     1 encode    code (32 x 8 positions) = tanh(w1 (32 x 27) * x (27 taps x 8 positions))
//     2 decode    sums (3*C x 8 positions) = w2 (3*C rows (c,q) x 32 features, for each p) * code below
//                 by p rows (32 x 8); shared memory then adds the three columns q that meet in a y
//     3 backward  dcode (32 x 8 positions) = w2 (32 x 27) * dy (27 taps x 8 positions), (1 - code^2)
//                 dw1 (32 x 27) += dcode (32 x 8) * x (8 positions x 27 taps)
//                 dw2 (32 x 27) += code (32 x 8) * dy (8 positions x 27 taps)
//
// Tricks, and what each is expected to gain, counted for C = 3, F = 32 and images of 32x32. None of it
// was measured on a GPU yet; docs/performance.md has the sums.
//   - A lane gets dcode of row lane/4 at columns 2*(lane%4) and +1, and would have to hold columns
//     lane%4 and +4 for the next product. But along k only the pairing counts: let k = lane%4 stand for
//     position 2*(lane%4) and k + 4 for the one after it, in both operands, and dcode, and with it the
//     code, is an operand where it lies. That saves 16 shuffles or a way through shared memory per
//     8 positions, beside 31 reads.
//   - dw1 and dw2 stay in 64 registers for a whole piece.
//   - With tf32x3, products of weight gradients start from zero (add_product): 64 of 413 instructions of
//     stage 3, in the time of its 72 products, so that a long sum does not drift.
//   - With tf32, dy is rounded where it is written: 30 of 259 instructions of stage 3 less.
//   - Four rows of y at a time in stage 2: six rows of code are read, not twelve.
//   - Positions are counted through, not row by row: 145 groups of 8 instead of 34 x 5.
//   - No bank conflicts: 36 floats per position of the code, so that 8 positions x 4 features (stage 2)
//     and 8 features x 4 positions, every second one (stages 1 and 3), lie in 32 banks. x and dy have
//     a pitch of 10 and planes of 31 more than a multiple of 32 floats, for 4 taps x 8 positions and for
//     8 taps x 4 positions, every second one; with the least pitch reads of them take twice as long.

#include "common.cuh"
#include "single_layer.cuh"
#include "mma.cuh"

constexpr int M_TILES = ceil_div(F, 16);  // of 16 features
constexpr int FEATURES = 16 * M_TILES;    // those from F on have weights 0 and codes tanh(0) = 0
constexpr int CODE_PITCH = FEATURES + 4;
constexpr int WEIGHT_PITCH = WARP + 4;
constexpr int TAP_TILES = ceil_div(PLANES, 8);
constexpr int ROWS = 4;       // of y, at a time in stage 2
constexpr int SUMS = 3 * C;   // (c, q)
constexpr int AT_ONCE = 2;    // groups of positions in stage 1, so that one waits while another works

// Sums of one thread over a piece. The first three are laid out like d of mma.cuh: rows are features,
// columns are taps, those of the decoder turned by half a turn.
struct Sums {
  float encoder[M_TILES][TAP_TILES][4], decoder[M_TILES][TAP_TILES][4];
  float encoder_bias[M_TILES][2];  // of rows lane/4 and +8, for the positions of this lane
  float decoder_bias[C];
  float error;  // in float64 from the block's sum on
};

// What the columns of y need from two neighbouring strips of 8 code columns: the sums of a strip lie in
// the half that its number's last bit names.
using Strips = float[2][ROWS][SUMS][8];

// Views of the dynamic shared memory.
struct Shared {
  Weights<WEIGHT_PITCH>* weights;
  float* x;
  float* dy;
  float* code;
  Strips* strips;
  int rows, pitch, plane;

  __device__ Shared(float* memory, bool gradients, int rows_, int pitch_, int plane_, int positions)
      : rows(rows_), pitch(pitch_), plane(plane_) {
    weights = (Weights<WEIGHT_PITCH>*)memory;
    x = memory + sizeof(*weights) / sizeof(float);
    dy = x + C * plane;
    code = memory + ceil_div((int)(dy - memory) + (gradients ? C * plane : 0), 4) * 4;
    strips = (Strips*)(code + positions * CODE_PITCH);
  }
  __device__ int at(int c, int i, int j) const { return c * plane + i * pitch + j; }
  // dy is nothing but an operand: rounded once, where it is written, not 15 times where it is read.
  static __device__ __forceinline__ float kept(float d) {
    return SPLIT ? d : __uint_as_float(word(d, 0.0f));
  }
  // Of the first value under a tap (or the last tap, for numbers beyond it) of a position at (0, 0).
  __device__ int under(int tap) const {
    tap = min(tap, PLANES - 1);
    return at(tap / TAPS, tap % TAPS / 3, tap % 3);
  }
};

// Positions of a rectangle, counted row by row.
struct Positions {
  int count, cols;
  unsigned reciprocal;  // k / cols is the high half of 2 * k * this, exactly for k and cols below 2^15

  __device__ Positions(int rows, int cols_)
      : count(rows * cols_), cols(cols_), reciprocal((0x80000000u + cols_ - 1) / cols_) {}
  __device__ int row(int k) const { return __umulhi(2 * k, reciprocal); }
  // Of position k in an array with `pitch` from row to row.
  __device__ int at(int k, int pitch) const { return k + row(k) * (pitch - cols); }
};

__device__ __forceinline__ int turned(int tap) { return tap / TAPS * 2 * TAPS + TAPS - 1 - tap; }

// Weights as left operands: rows are features, columns are taps.
template <bool turn>
__device__ __forceinline__ void load_operands(Fragment<4> (&w)[M_TILES][TAP_TILES],
                                              const float (&from)[PLANES][WEIGHT_PITCH]) {
  const int row = threadIdx.x % WARP / 4, column = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
    for (int t = 0; t < TAP_TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int tap = 8 * t + column + i / 2 * 4, f = 16 * m + row + i % 2 * 8;
        w[m][t].set(i, tap < PLANES ? from[turn ? turned(tap) : tap][f] : 0.0f);
      }
    }
  }
}

// Word i of an operand is v, which is rounded already if the product rounds.
template <int n>
__device__ __forceinline__ void set_rounded(Fragment<n>& to, int i, float v) {
  if (SPLIT) {
    to.set(i, v);
  } else {
    to.big[i] = __float_as_uint(v);
  }
}

// sum (features x 8 positions) += w * what lies under the taps of the lane's position, `from`.
template <bool is_rounded>
__device__ __forceinline__ void multiply_taps(float (&sum)[M_TILES][4],
                                              const Fragment<4> (&w)[M_TILES][TAP_TILES],
                                              const float* from, const int (&under)[TAP_TILES][2]) {
#pragma unroll
  for (int t = 0; t < TAP_TILES; ++t) {
    Fragment<2> taps;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float v = 8 * t + 4 * half < PLANES ? from[under[t][half]] : 0.0f;
      if (is_rounded) {
        set_rounded(taps, half, v);
      } else {
        taps.set(half, v);
      }
    }
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) mma(sum[m], w[m][t], taps);
  }
}

// Stage 1: code[f,i,j] = tanh(b1[f] + sum over c,p,q of w1[f,c,p,q] * x[c,i+p,j+q]).
__device__ __forceinline__ void encode(const Shared& s, const Unit& u, float* code, int H, int W) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = lane / 4, column = lane % 4;  // as in mma.cuh
  Fragment<4> w[M_TILES][TAP_TILES];
  load_operands<false>(w, s.weights->encoder);
  float bias[M_TILES][2];
  int under[TAP_TILES][2];
#pragma unroll
  for (int m = 0; m < M_TILES; ++m) {
    bias[m][0] = s.weights->encoder_bias[16 * m + row];
    bias[m][1] = s.weights->encoder_bias[16 * m + row + 8];
  }
#pragma unroll
  for (int t = 0; t < TAP_TILES; ++t) {
    under[t][0] = s.under(8 * t + column);
    under[t][1] = s.under(8 * t + column + 4);
  }
  const Positions all(u.height + BORDER, u.width + BORDER);
  const int groups = ceil_div(all.count, 8);
  for (int first = warp; first < groups; first += AT_ONCE * WARPS) {
    float sum[AT_ONCE][M_TILES][4];
#pragma unroll
    for (int g = 0; g < AT_ONCE; ++g) {
      int k = min((first + g * WARPS) * 8 + row, all.count - 1);
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[g][m][i] = bias[m][i / 2];
      }
      multiply_taps<false>(sum[g], w, s.x + all.at(k, s.pitch), under);
    }
#pragma unroll
    for (int g = 0; g < AT_ONCE; ++g) {
      if (first + g * WARPS >= groups) break;
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int k = (first + g * WARPS) * 8 + 2 * column + i % 2, f = 16 * m + row + i / 2 * 8;
          float value = bounded_tanh(sum[g][m][i]);
          s.code[k * CODE_PITCH + f] = value;  // the last group's room is there
          if (code && k < all.count && f < F) {
            long long plane = (long long)(H + 2) * (W + 2), at = all.row(k);
            at = (u.top + at) * (W + 2) + u.left + k - at * all.cols;
            code[(u.n * F + f) * plane + at] = value;
          }
        }
      }
    }
  }
}

// Stage 2: y[c,i,j] = act(b2[c] + sum over f,p,q of w2[c,f,p,q] * code[f,i+p,j+q]) and what follows from
// it (finish_value). A warp takes four rows of y, and goes along them by strips of 8 columns of code; a
// strip completes the 8 columns of y that end two before its own end. Where there are fewer rows than
// warps can share, they are cut into chunks, which begin with the last strip of the chunk before.
template <bool gradients>
__device__ __forceinline__ void decode(const Shared& s, const Unit& u, const float* b2, float* y,
                                       int H, int W, float gradient_scale, Sums& sums) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = lane / 4, column = lane % 4;
  Fragment<4> w[3][FEATURES / 8];
#pragma unroll
  for (int p = 0; p < 3; ++p) {
#pragma unroll
    for (int t = 0; t < FEATURES / 8; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Rows from SUMS on repeat the last one and are not stored: zeros would cost registers, too.
        int cq = min(row + i % 2 * 8, SUMS - 1), f = 8 * t + column + i / 2 * 4;
        w[p][t].set(i, s.weights->decoder[cq / 3 * TAPS + p * 3 + cq % 3][f]);
      }
    }
  }
  Strips& of_warp = s.strips[warp];
  const int cols = u.width + BORDER, strips = ceil_div(cols, 8), bands = ceil_div(u.height, ROWS);
  const int chunks = max(1, min(strips, WARPS / bands)), last = (u.height + BORDER) * cols - 1;
  for (int item = warp; item < bands * chunks; item += WARPS) {
    int chunk, i0 = ROWS * divide_piece(item, chunks, chunk);
    const int begin = chunk * strips / chunks, end = (chunk + 1) * strips / chunks;
    for (int strip = begin; strip < min(end + 1, strips); ++strip) {
      float sum[ROWS][4] = {};
#pragma unroll
      for (int r = 0; r < ROWS + 2; ++r) {
        const int below = min(i0 + r, u.height + 1);
        const int at = min(below * cols + 8 * strip + row, last);  // no y sees what lies past it
        const float* from = s.code + at * CODE_PITCH + column;
#pragma unroll
        for (int t = 0; t < FEATURES / 8; ++t) {
          Fragment<2> code;
          code.set(0, from[8 * t]);
          code.set(1, from[8 * t + 4]);
#pragma unroll
          for (int p = 0; p < 3; ++p) {
            int i = r - p;  // the row of y that sees this one through tap row p
            if (i >= 0 && i < ROWS) mma(sum[i], w[p][t], code);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        float(&to)[SUMS][8] = of_warp[strip % 2][i];
        if (row < SUMS) *(float2*)&to[row][2 * column] = make_float2(sum[i][0], sum[i][1]);
        if (row + 8 < SUMS) *(float2*)&to[row + 8][2 * column] = make_float2(sum[i][2], sum[i][3]);
      }
      __syncwarp();  // the strip is there
      const int i = lane / 8, j = 8 * strip - BORDER + lane % 8;
      if (i0 + i < u.height && j >= 8 * begin && j < min(8 * end, u.width)) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          float value = 0.0f;
#pragma unroll
          for (int q = 0; q < 3; ++q) value += of_warp[(j + q) / 8 % 2][i][3 * c + q][(j + q) % 8];
          finish_value<gradients>(s, u, value + b2[c], c, i0 + i, j, y, H, W, gradient_scale,
                                  sums.error, sums.decoder_bias[c]);
        }
      }
      __syncwarp();  // before the next strip but one takes its place; products need all lanes, too
    }
  }
}

// Stage 3, for the unit's own positions: dcode[f,i,j] = (sum over c,p,q of w2[c,f,p,q] * dy[c,i-p,j-q]
// + sparsity * sign(code)) * (1 - code^2), and the weight gradients
//   dw2[c,f,p,q] += code[f,i,j] * dy[c,i-p,j-q]      dw1[f,c,p,q] += dcode[f,i,j] * x[c,i+p,j+q]
// dy has a border of two, so dy[c,i-p,j-q] lies under tap (2-p, 2-q) of (i, j), like x under (p, q).
__device__ __forceinline__ void backward(const Shared& s, const Unit& u, float sparsity, Sums& sums,
                                         float& magnitude) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = lane / 4, column = lane % 4;
  Fragment<4> w[M_TILES][TAP_TILES];
  load_operands<true>(w, s.weights->decoder);
  int under[TAP_TILES][2], under_row[TAP_TILES];
#pragma unroll
  for (int t = 0; t < TAP_TILES; ++t) {
    under[t][0] = s.under(8 * t + column);
    under[t][1] = s.under(8 * t + column + 4);
    under_row[t] = s.under(8 * t + row);
  }
  const Positions own(u.own_rows, u.own_cols);
  const int cols = u.width + BORDER, groups = ceil_div(own.count, 8);
  const int corner = s.at(0, u.own_i, u.own_j), code_corner = u.own_i * cols + u.own_j;
  for (int group = warp; group < groups; group += WARPS) {
    float sum[M_TILES][4] = {}, magnitudes = 0.0f;
    int mine = min(8 * group + row, own.count - 1);
    multiply_taps<true>(sum, w, s.dy + corner + own.at(mine, s.pitch), under);

    // Sums, and the code here, belong to row and row + 8 (i / 2) at positions 2 * column and + 1 (i % 2).
    int at[2];
    Fragment<4> h[M_TILES], d[M_TILES];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int k = 8 * group + 2 * column + e;
      bool inside = k < own.count;
      k = min(k, own.count - 1);
      at[e] = corner + own.at(k, s.pitch);
      const float* code = s.code + (code_corner + own.at(k, cols)) * CODE_PITCH + row;
      const float one = inside ? 1.0f : 0.0f;  // outside, code and dcode become 0
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float value = inside ? code[16 * m + 8 * half] : 0.0f;
          float total = sum[m][2 * half + e];
          if (SPARSE) {
            magnitudes += fabsf(value);
            if (value != 0.0f) total += copysignf(sparsity, value);
          }
          total *= fmaf(-value, value, one);
          sums.encoder_bias[m][half] += total;
          // k of the operand: `column` is position 2 * column, column + 4 the one after it.
          h[m].set(2 * e + half, value);
          d[m].set(2 * e + half, total);
        }
      }
    }
    if (SPARSE) magnitude += magnitudes;
#pragma unroll
    for (int t = 0; t < TAP_TILES; ++t) {
      Fragment<2> of_dy, of_x;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        set_rounded(of_dy, e, s.dy[at[e] + under_row[t]]);
        of_x.set(e, s.x[at[e] + under_row[t]]);
      }
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
        add_product(sums.decoder[m][t], h[m], of_dy);
        add_product(sums.encoder[m][t], d[m], of_x);
      }
    }
  }
}

// The sums of all threads of a block, in place of the weights. The warps take turns, so that the
// order is fixed.
__device__ __forceinline__ void add_up(Weights<WEIGHT_PITCH>& to, const Sums& sums) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = lane / 4, column = lane % 4;
  for (int turn = 0; turn < WARPS; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int t = 0; t < TAP_TILES; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            int tap = 8 * t + 2 * column + i % 2, f = 16 * m + row + i / 2 * 8;
            if (tap >= PLANES) continue;
            float& encoder = to.encoder[tap][f];
            float& decoder = to.decoder[turned(tap)][f];
            encoder = sums.encoder[m][t][i] + (turn ? encoder : 0.0f);
            decoder = sums.decoder[m][t][i] + (turn ? decoder : 0.0f);
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float bias = sums.encoder_bias[m][half];
          bias += __shfl_xor_sync(ALL_LANES, bias, 1);
          bias += __shfl_xor_sync(ALL_LANES, bias, 2);
          float& total = to.encoder_bias[16 * m + row + 8 * half];
          if (column == 0) total = bias + (turn ? total : 0.0f);
        }
      }
    }
    __syncthreads();  // before the next warp adds
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) single_layer_step_mma(
    const unsigned char* __restrict__ images,  // (M * C * H * W)
    const long long* __restrict__ indices,     // (N)
    const float* __restrict__ w1,              // (F, C, 3, 3)
    const float* __restrict__ b1,              // (F)
    const float* __restrict__ w2,              // (C, F, 3, 3)
    const float* __restrict__ b2,              // (C)
    float* __restrict__ partial,               // (R, 18 * F * C + F + C)
    double* __restrict__ totals,               // (R, 2)
    long long M, long long N, int H, int W, int R, int tile_h, int tile_w,
    int rows, int pitch, int plane, int positions,
    float scale, float shift, float gradient_scale, float sparsity)
{
  extern __shared__ __align__(16) float memory[];
  __shared__ Unit u;  // every thread needs all of it, but not all the time: it would take registers
  Shared s(memory, true, rows, pitch, plane, positions);
  unsigned units = N * ceil_div(H + BORDER, tile_h) * ceil_div(W + BORDER, tile_w);
  __shared__ float magnitudes[THREADS];  // sums of |code|, here for the same reason
  FOR_EACH_BLOCK(piece, R) {
    load_weights(*s.weights, w1, b1, w2);
    Sums sums = {};
    magnitudes[threadIdx.x] = 0.0f;
    for (unsigned number = piece; number < units; number += R) {
      if (threadIdx.x == 0) {
        u = unit_at<BORDER>(number, images, indices, M, H, W, tile_h, tile_w);
      }
      __syncthreads();  // the unit is there
      load_image<true>(s, u, w1, H, W, scale, shift);
      __syncthreads();  // x and the weights are there
      encode(s, u, nullptr, H, W);
      __syncthreads();  // the code is there
      decode<true>(s, u, b2, nullptr, H, W, gradient_scale, sums);
      __syncthreads();  // dy is there
      backward(s, u, sparsity, sums, magnitudes[threadIdx.x]);
      __syncthreads();  // before the next image overwrites x and dy
    }
    add_up(*s.weights, sums);
    store_gradients(*s.weights, sums.decoder_bias, partial + (long long)piece * PARAMETERS);
    store_totals(sums.error, magnitudes[threadIdx.x], totals + 2 * piece);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) single_layer_forward_mma(
    const unsigned char* __restrict__ images,  // (M * C * H * W)
    const long long* __restrict__ indices,     // (N)
    const float* __restrict__ w1,              // (F, C, 3, 3)
    const float* __restrict__ b1,              // (F)
    const float* __restrict__ w2,              // (C, F, 3, 3)
    const float* __restrict__ b2,              // (C)
    float* __restrict__ code,                  // (N, F, H + 2, W + 2) or null
    float* __restrict__ y,                     // (N, C, H, W) or null
    double* __restrict__ totals,               // (R, 2)
    long long M, long long N, int H, int W, int R, int tile_h, int tile_w,
    int rows, int pitch, int plane, int positions, float scale, float shift)
{
  extern __shared__ __align__(16) float memory[];
  __shared__ Unit u;  // every thread needs all of it, but not all the time: it would take registers
  Shared s(memory, false, rows, pitch, plane, positions);
  unsigned units = N * ceil_div(H, tile_h) * ceil_div(W, tile_w);
  FOR_EACH_BLOCK(piece, R) {
    load_weights(*s.weights, w1, b1, w2);
    Sums sums = {};
    for (unsigned number = piece; number < units; number += R) {
      if (threadIdx.x == 0) {
        u = unit_at<0>(number, images, indices, M, H, W, tile_h, tile_w);
      }
      __syncthreads();  // the unit is there
      load_image<false>(s, u, w1, H, W, scale, shift);
      __syncthreads();  // x and the weights are there
      encode(s, u, code, H, W);
      __syncthreads();  // the code is there
      decode<false>(s, u, b2, y, H, W, 0.0f, sums);
      __syncthreads();  // before the next image overwrites x
    }
    store_totals(sums.error, 0.0f, totals + 2 * piece);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) single_layer_reduce_mma(
    const float* __restrict__ partial,   // (R * P)
    const double* __restrict__ totals,   // (R, 2)
    float* __restrict__ gradients,       // (P)
    double* __restrict__ total,          // (2)
    long long R, long long P)
{
  reduce_pieces(partial, totals, gradients, total, R, P);
}
