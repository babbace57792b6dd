// The single-layer autoencoder whole: from bytes to all gradients in one kernel, and a forward-only
// twin. See cae_raw/ops/single_layer.py for the formulas, cae_raw/ops/single_layer_plan.py for tiles,
// and single_layer_step_mma.cu for the same on tensor cores.
//
// single_layer_step: partial[r] = gradients (w1, b1, w2, b2) of gradient_scale/2 * sum (y-x)^2 over piece r
//   shapes: images (M, C, H, W) uint8, indices (N) int64, w1 (F, C, 3, 3), b1 (F), w2 (C, F, 3, 3), b2 (C), partial (R, P), totals (R, 2) float64
//   constants: C, F (at most 3 and 32), THREADS, BACK_ROWS, BACK_COLS, DECODER_TANH, SPARSE
//   flops: 18*N*F*C*(4*(H+2)*(W+2) + H*W)
//   bytes: N*C*H*W + 4*R*(18*F*C + F + C)
//   bound: arithmetic
// single_layer_forward: totals[r] = sum of (y - x)^2 over piece r; also the code and y where they are asked for
//   shapes: images (M, C, H, W) uint8, indices (N) int64, w1, b1, w2, b2 as above, code (N, F, H+2, W+2) or null, y (N, C, H, W) or null, totals (R, 2) float64
//   constants: as above
//   flops: 18*N*F*C*((H+2)*(W+2) + H*W)
//   bytes: N*C*H*W
//   bound: arithmetic
// single_layer_reduce: gradients[m] = sum over r of partial[r,m]; total = sum over r of totals[r]
//   shapes: partial (R, P), totals (R, 2) float64, gradients (P), total (2) float64
//   constants: THREADS
//   flops: R*P + 2*R
//   bytes: 4*(R*P + P) + 16*(R + 1)
//   bound: latency
//
// A unit of work is a tile of an image, on most GPUs the whole image. A block takes the units
// r, r+R, r+2R, ... of a piece r, one after the other:
//
//   device    images, 1 byte per value, read once        parameters, read once per piece
//                |                                           |
//   shared    x (C, rows, pitch)      code (rows, cols, 32)  w1, w2 (9*C, 32)    dy (C, rows, pitch)
//             scaled, two zeros       features innermost     features innermost  two zeros around
//             around the image
//                |         \             |         \             |                  |
//   registers  [1 encode: code = tanh(w1 * x)]  [2 decode: y, loss, dy]  [3 backward: dcode, dw1, dw2]
//                                                                           |
//   device    partial (R, P), written once per piece   <-- dw1, dw2, db1, db2 stay in registers
//
// The map of the code, ten times everything else, never leaves the multiprocessor, and neither does
// any gradient before the end of a piece. The three stages see the same data in two arrangements:
//
//   forward (1, 2)   A group of 8 lanes makes a tile of 2 x 4 positions, four features per lane; the
//                    weights of these four (4*9*C) are in registers. A warp works on four tiles.
//                    Stage 2 sums over features: in the lane, then over the 8 lanes, in an exchange
//                    that leaves each lane with the C values of one of the 8 positions.
//   backward (3)     Lane = feature. A warp walks over tiles of BACK_ROWS x BACK_COLS positions; x and
//                    dy are the same for all lanes (one broadcast), the code is 32 neighbours. So dw1
//                    and dw2 of a feature are 2*9*C registers of a lane for the whole piece, and
//                    nothing is summed across lanes at all.
//
// What each choice is expected to gain. All of it is counted, for C = 3, F = 32 and images of 32x32,
// in the machine code for sm_90; none of it was measured on a GPU yet. docs/performance.md has the sums.
//   - The code stays in shared memory: 148 KB per image are not written once and read four times. For
//     1,024 images that is 0.76 GB, 0.16 ms at 4.8 TB/s, as long as all the arithmetic takes.
//   - Tiles in registers. Shared memory moves 128 bytes in the time of 4 multiply-adds of a warp. In
//     that measure it is busy for 0.50, 0.54 and 0.71 of the time of the multiply-adds in stages 1, 2
//     and 3; without tiles, one word per multiply-add, for 4 times as long as they take.
//   - Weight gradients in registers for a whole piece: no atomics, and not the sum over warps after
//     each image, which would add 12 % to stage 3.
//   - tanh in 6 instructions instead of about 20 (`bounded_tanh`): 8 % of a step.
//   - 2 launches instead of 16: 20 to 40 us of a small batch.

#include "common.cuh"
#include "single_layer.cuh"

// The forward tile: as many positions as lanes in its group.
constexpr int ROWS = 2, COLS = 4;
constexpr int GROUP = ROWS * COLS;     // lanes
constexpr int GROUPS = WARP / GROUP;   // of a warp
static_assert(4 * GROUP == WARP, "a group of lanes holds 32 features, four per lane");
static_assert(BACK_COLS % 2 == 0, "rows of a tile are read in pairs");

// Sums of one thread over a piece. The first three belong to the feature of its lane.
struct Sums {
  float encoder[PLANES], decoder[PLANES];
  float encoder_bias;
  float decoder_bias[C];
  float error;  // in float64 from the block's sum on
};

// Views of the dynamic shared memory.
struct Shared {
  Weights<WARP>* weights;
  float* x;
  float* dy;
  float* code;
  int rows, pitch, code_pitch;

  __device__ Shared(float* memory, bool gradients, int rows_, int pitch_, int code_pitch_)
      : rows(rows_), pitch(pitch_), code_pitch(code_pitch_) {
    weights = (Weights<WARP>*)memory;
    x = memory + sizeof(Weights<WARP>) / sizeof(float);
    dy = x + C * rows * pitch;
    code = gradients ? dy + C * rows * pitch : dy;
  }
  __device__ int at(int c, int i, int j) const { return (c * rows + i) * pitch + j; }
  static __device__ __forceinline__ float kept(float d) { return d; }
  __device__ float* features(int i, int j) const { return code + (i * code_pitch + j) * WARP; }
};

// n floats from an address that is a multiple of 8 bytes; n is even.
template <int n>
__device__ __forceinline__ void load_row(float (&row)[n], const float* from) {
#pragma unroll
  for (int k = 0; k < n / 2; ++k) {
    float2 pair = ((const float2*)from)[k];
    row[2 * k] = pair.x;
    row[2 * k + 1] = pair.y;
  }
}

__device__ __forceinline__ float4 load4(const float* from) { return *(const float4*)from; }

__device__ __forceinline__ void add_product(float4& sum, float4 w, float v) {
  sum.x = fmaf(w.x, v, sum.x);
  sum.y = fmaf(w.y, v, sum.y);
  sum.z = fmaf(w.z, v, sum.z);
  sum.w = fmaf(w.w, v, sum.w);
}

__device__ __forceinline__ float add_dot(float sum, float4 a, float4 b) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Stage 1: code[f,i,j] = tanh(b1[f] + sum over c,p,q of w1[f,c,p,q] * x[c,i+p,j+q]).
__device__ __forceinline__ void encode(const Shared& s, const Unit& u, float* code, int H, int W) {
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  int first = lane % GROUP * 4;  // of the lane's four features
  float4 w[PLANES];
#pragma unroll
  for (int k = 0; k < PLANES; ++k) w[k] = load4(&s.weights->encoder[k][first]);

  int across = ceil_div(u.width + BORDER, COLS);
  int tiles = across * ceil_div(u.height + BORDER, ROWS);
  for (int tile = warp * GROUPS + lane / GROUP; tile < tiles; tile += WARPS * GROUPS) {
    int j0, i0 = ROWS * divide_piece(tile, across, j0);
    j0 *= COLS;
    float4 bias = load4(&s.weights->encoder_bias[first]), sum[ROWS][COLS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < COLS; ++j) sum[i][j] = bias;
    }
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int r = 0; r < ROWS + 2; ++r) {
        float row[COLS + 2];
        load_row(row, s.x + s.at(c, i0 + r, j0));
#pragma unroll
        for (int p = 0; p < 3; ++p) {
          int i = r - p;  // the output row that sees this row through tap row p
          if (i < 0 || i >= ROWS) continue;
#pragma unroll
          for (int q = 0; q < 3; ++q) {
#pragma unroll
            for (int j = 0; j < COLS; ++j) {
              add_product(sum[i][j], w[c * TAPS + p * 3 + q], row[j + q]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < COLS; ++j) {
        float4 h = sum[i][j];
        h = make_float4(bounded_tanh(h.x), bounded_tanh(h.y), bounded_tanh(h.z), bounded_tanh(h.w));
        *(float4*)(s.features(i0 + i, j0 + j) + first) = h;
        if (code && i0 + i < u.height + BORDER && j0 + j < u.width + BORDER) {
          float value[4] = {h.x, h.y, h.z, h.w};
          long long plane = (long long)(H + 2) * (W + 2);
          long long at = (u.n * F + first) * plane + (u.top + i0 + i) * (W + 2) + u.left + j0 + j;
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (first + k < F) code[at + k * plane] = value[k];
          }
        }
      }
    }
  }
}

// Sum over the lanes of a group: lane k gets the totals of position k in sum[...][0]. At each step a
// lane gives away half of what it has left and receives the other half's counterpart.
__device__ __forceinline__ void exchange(float (&sum)[C][GROUP]) {
  int lane = threadIdx.x % WARP;
#pragma unroll
  for (int half = GROUP / 2; half > 0; half /= 2) {
    bool upper = lane & half;
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int k = 0; k < half; ++k) {
        float given = upper ? sum[c][k] : sum[c][k + half];
        float kept = upper ? sum[c][k + half] : sum[c][k];
        sum[c][k] = kept + __shfl_xor_sync(ALL_LANES, given, half);
      }
    }
  }
}

// Stage 2: y[c,i,j] = act(b2[c] + sum over f,p,q of w2[c,f,p,q] * code[f,i+p,j+q]), the squared error
// of the unit's own part of y, and dy = gradient_scale * (y - x) * act'(y).
template <bool gradients>
__device__ __forceinline__ void decode(const Shared& s, const Unit& u, const float* b2, float* y,
                                       int H, int W, float gradient_scale, Sums& sums) {
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  int member = lane % GROUP;
  float4 w[PLANES];
#pragma unroll
  for (int k = 0; k < PLANES; ++k) w[k] = load4(&s.weights->decoder[k][4 * member]);

  int across = ceil_div(u.width, COLS), tiles = across * ceil_div(u.height, ROWS);
  // All lanes stay together for the exchange: a group without a tile repeats the last one.
  for (int start = warp * GROUPS; start < tiles; start += WARPS * GROUPS) {
    int tile = start + lane / GROUP;
    int j0, i0 = ROWS * divide_piece(min(tile, tiles - 1), across, j0);
    j0 *= COLS;
    float sum[C][GROUP];
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int k = 0; k < GROUP; ++k) sum[c][k] = 0.0f;
    }
#pragma unroll
    for (int r = 0; r < ROWS + 2; ++r) {
#pragma unroll
      for (int v = 0; v < COLS + 2; ++v) {
        float4 h = load4(s.features(i0 + r, j0 + v) + 4 * member);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
#pragma unroll
          for (int j = 0; j < COLS; ++j) {
            int p = r - i, q = v - j;  // the tap through which position (i, j) sees this one
            if (p < 0 || p > 2 || q < 0 || q > 2) continue;
#pragma unroll
            for (int c = 0; c < C; ++c) {
              float& total = sum[c][i * COLS + j];
              total = add_dot(total, w[c * TAPS + p * 3 + q], h);
            }
          }
        }
      }
    }
    exchange(sum);
    int i = i0 + member / COLS, j = j0 + member % COLS;
    if (tile >= tiles || i >= u.height || j >= u.width) continue;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      finish_value<gradients>(s, u, sum[c][0] + b2[c], c, i, j, y, H, W, gradient_scale,
                              sums.error, sums.decoder_bias[c]);
    }
  }
}

// Stage 3, for the unit's own positions: dcode[f,i,j] = (sum over c,p,q of w2[c,f,p,q] * dy[c,i-p,j-q]
// + sparsity * sign(code)) * (1 - code^2), and the weight gradients
//   dw2[c,f,p,q] += code[f,i,j] * dy[c,i-p,j-q]      dw1[f,c,p,q] += dcode[f,i,j] * x[c,i+p,j+q]
__device__ __forceinline__ void backward(const Shared& s, const Unit& u, float sparsity,
                                         Sums& sums, float& magnitude) {
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  float magnitudes = 0.0f;
  float w[PLANES];
#pragma unroll
  for (int k = 0; k < PLANES; ++k) w[k] = s.weights->decoder[k][lane];

  int across = ceil_div(u.own_cols, BACK_COLS);
  int tiles = across * ceil_div(u.own_rows, BACK_ROWS);
  for (int tile = warp; tile < tiles; tile += WARPS) {
    int j0, i0 = BACK_ROWS * divide_piece(tile, across, j0);
    j0 *= BACK_COLS;
    int rows = u.own_rows - i0, cols = u.own_cols - j0;  // what is left of the unit
    i0 += u.own_i;
    j0 += u.own_j;
    float h[BACK_ROWS][BACK_COLS], d[BACK_ROWS][BACK_COLS];
#pragma unroll
    for (int i = 0; i < BACK_ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < BACK_COLS; ++j) {
        h[i][j] = i < rows && j < cols ? s.features(i0 + i, j0 + j)[lane] : 0.0f;
        d[i][j] = 0.0f;
      }
    }
    // Row r of dy with its border, r rows below the tile's first, is y's row i0 + r - 2: output row i
    // sees it through tap row p = i - (r - 2).
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int r = 0; r < BACK_ROWS + 2; ++r) {
        float row[BACK_COLS + 2];
        load_row(row, s.dy + s.at(c, i0 + r, j0));
#pragma unroll
        for (int p = 0; p < 3; ++p) {
          int i = r + p - 2;
          if (i < 0 || i >= BACK_ROWS) continue;
#pragma unroll
          for (int q = 0; q < 3; ++q) {
            int k = c * TAPS + p * 3 + q;
#pragma unroll
            for (int j = 0; j < BACK_COLS; ++j) {
              d[i][j] = fmaf(w[k], row[j + 2 - q], d[i][j]);
              sums.decoder[k] = fmaf(h[i][j], row[j + 2 - q], sums.decoder[k]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < BACK_ROWS; ++i) {
#pragma unroll
      for (int j = 0; j < BACK_COLS; ++j) {
        float value = h[i][j];
        if (SPARSE) {
          magnitudes += fabsf(value);
          if (value != 0.0f) d[i][j] += copysignf(sparsity, value);
        }
        d[i][j] = i < rows && j < cols ? d[i][j] * (1.0f - value * value) : 0.0f;
        sums.encoder_bias += d[i][j];
      }
    }
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int r = 0; r < BACK_ROWS + 2; ++r) {
        float row[BACK_COLS + 2];
        load_row(row, s.x + s.at(c, i0 + r, j0));
#pragma unroll
        for (int p = 0; p < 3; ++p) {
          int i = r - p;
          if (i < 0 || i >= BACK_ROWS) continue;
#pragma unroll
          for (int q = 0; q < 3; ++q) {
            int k = c * TAPS + p * 3 + q;
#pragma unroll
            for (int j = 0; j < BACK_COLS; ++j) {
              sums.encoder[k] = fmaf(d[i][j], row[j + q], sums.encoder[k]);
            }
          }
        }
      }
    }
  }
  if (SPARSE) magnitude += magnitudes;
}

// The sums of all threads of a block, in place of the weights. The warps take turns, so that the
// order is fixed.
__device__ __forceinline__ void add_up(Weights<WARP>& to, const Sums& sums) {
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int turn = 0; turn < WARPS; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int k = 0; k < PLANES; ++k) {
        to.encoder[k][lane] = sums.encoder[k] + (turn ? to.encoder[k][lane] : 0.0f);
        to.decoder[k][lane] = sums.decoder[k] + (turn ? to.decoder[k][lane] : 0.0f);
      }
      to.encoder_bias[lane] = sums.encoder_bias + (turn ? to.encoder_bias[lane] : 0.0f);
    }
    __syncthreads();  // before the next warp adds
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) single_layer_step(
    const unsigned char* __restrict__ images,  // (M * C * H * W)
    const long long* __restrict__ indices,     // (N)
    const float* __restrict__ w1,              // (F, C, 3, 3)
    const float* __restrict__ b1,              // (F)
    const float* __restrict__ w2,              // (C, F, 3, 3)
    const float* __restrict__ b2,              // (C)
    float* __restrict__ partial,               // (R, 18 * F * C + F + C)
    double* __restrict__ totals,               // (R, 2)
    long long M, long long N, int H, int W, int R, int tile_h, int tile_w,
    int rows, int pitch, int code_pitch,
    float scale, float shift, float gradient_scale, float sparsity)
{
  extern __shared__ __align__(16) float memory[];
  __shared__ Unit u;  // every thread needs all of it, but not all the time: it would take registers
  Shared s(memory, true, rows, pitch, code_pitch);
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

extern "C" __global__ void __launch_bounds__(THREADS, 1) single_layer_forward(
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
    int rows, int pitch, int code_pitch, float scale, float shift)
{
  extern __shared__ __align__(16) float memory[];
  __shared__ Unit u;  // every thread needs all of it, but not all the time: it would take registers
  Shared s(memory, false, rows, pitch, code_pitch);
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

extern "C" __global__ void __launch_bounds__(THREADS) single_layer_reduce(
    const float* __restrict__ partial,   // (R * P)
    const double* __restrict__ totals,   // (R, 2)
    float* __restrict__ gradients,       // (P)
    double* __restrict__ total,          // (2)
    long long R, long long P)
{
  reduce_pieces(partial, totals, gradients, total, R, P);
}
