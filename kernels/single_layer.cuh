// What the kernels of the fused single-layer step share: units of work, the image on its way into
// shared memory, and what leaves a block at the end. See single_layer_step.cu for the whole picture.
//
// Constants: C, F (at most 3 and 32), THREADS, DECODER_TANH, SPARSE.

constexpr int TAPS = 9;           // of a 3x3 window
constexpr int PLANES = C * TAPS;  // weights of a feature, in either convolution
constexpr int BORDER = 2;         // zeros around x and around dy
constexpr int WARPS = THREADS / WARP;
constexpr int PARAMETERS = 2 * F * PLANES + F + C;
static_assert(F <= WARP && C <= 3, "see cae_raw/ops/single_layer_plan.py");

// Weights, and at the end of a piece their gradients, in shared memory. Features from F on are 0.
template <int PITCH>
struct Weights {
  float encoder[PLANES][PITCH];
  float decoder[PLANES][PITCH];
  float encoder_bias[PITCH];
};

// Where a unit lies. Rows and columns count from (top, left) of the part of y that it computes, which
// in the code and in x with its border is position (top, left) as well.
struct Unit {
  long long n;                   // of the batch
  const unsigned char* image;    // null where the index is none of a known image
  int top, left, height, width;  // of y; the code has 2 more rows and columns
  int own_i, own_j;              // the first position whose gradients are this unit's
  int own_rows, own_cols;
};

// Cut (H + halo) x (W + halo) positions into tiles. To know dcode in a tile, dy must be known 2 rows
// above it, and for that the code 2 rows above and 2 below: halo = 2. Without gradients it is 0.
template <int halo>
__device__ __forceinline__ Unit unit_at(unsigned number, const unsigned char* images,
                                        const long long* indices, long long M, int H, int W,
                                        int tile_h, int tile_w) {
  int across = ceil_div(W + halo, tile_w), down = ceil_div(H + halo, tile_h);
  int i, j;
  Unit u;
  u.n = divide_piece(divide_piece(number, across, j), down, i);
  long long chosen = indices[u.n];
  u.image = chosen >= 0 && chosen < M ? images + chosen * C * H * W : nullptr;
  int own_top = i * tile_h, own_left = j * tile_w;
  int bottom = min(own_top + tile_h, H + halo), right = min(own_left + tile_w, W + halo);
  u.top = max(own_top - halo, 0);
  u.left = max(own_left - halo, 0);
  u.height = min(bottom, H) - u.top;
  u.width = min(right, W) - u.left;
  u.own_i = own_top - u.top;
  u.own_j = own_left - u.left;
  u.own_rows = bottom - own_top;
  u.own_cols = right - own_left;
  return u;
}

// Each kernel has its own `Shared`, views of the dynamic shared memory. What is used here: x and dy, C
// planes of `rows` rows with `pitch` floats in each, at(c, i, j), the place of a value in either, and
// kept(d), what is kept of a value of dy.

// tanh(v) = 1 - 2 / (exp(2v) + 1) in six instructions, two of them approximations by the hardware.
// The absolute error stays below 3e-7, that of a float32 near 1; tanhf also keeps the relative error
// of values near 0 that small, which a sum over many features does not notice.
__device__ __forceinline__ float bounded_tanh(float v) {
  return fmaf(-2.0f, __fdividef(1.0f, exp2f(2.88539008f * v) + 1.0f), 1.0f);
}

template <int PITCH>
__device__ __forceinline__ void load_weights(Weights<PITCH>& to, const float* w1, const float* b1,
                                             const float* w2) {
  int f = threadIdx.x % WARP;
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int step = 0; step < TAPS; step += WARPS) {
      int tap = step + threadIdx.x / WARP;
      if (tap >= TAPS) continue;
      to.encoder[c * TAPS + tap][f] = f < F ? w1[(f * C + c) * TAPS + tap] : 0.0f;
      to.decoder[c * TAPS + tap][f] = f < F ? w2[(c * F + f) * TAPS + tap] : 0.0f;
    }
  }
  if (threadIdx.x < WARP) to.encoder_bias[f] = f < F ? b1[f] : 0.0f;
}

// Stage 0: the unit's part of the image as floats, with zeros around it; and zeros for dy. An image
// that is not known becomes NaN, which makes the mistake visible; `anything` is read in its place.
template <bool gradients, class Shared>
__device__ __forceinline__ void load_image(const Shared& s, const Unit& u, const void* anything,
                                           int H, int W, float scale, float shift) {
  constexpr int AT_ONCE = 8;  // loads in flight per thread
  const unsigned char* image = u.image ? u.image : (const unsigned char*)anything;
  bool known = u.image;
  if (!known) scale = __int_as_float(0x7fffffff);
  int row = threadIdx.x / s.pitch, col = threadIdx.x % s.pitch;  // of all planes, one below the other
  const int down = THREADS / s.pitch, right = THREADS % s.pitch;
  while (row < C * s.rows) {
    float value[AT_ONCE];
    int at[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
      int c = (C > 1 && row >= s.rows) + (C > 2 && row >= 2 * s.rows);
      int i = row - c * s.rows, h = u.top + i - BORDER, v = u.left + col - BORDER;
      bool inside = row < C * s.rows && h >= 0 && h < H && v >= 0 && v < W;
      // No branch: the loads of all eight values are under way at the same time.
      float byte = image[inside && known ? ((long long)c * H + h) * W + v : 0];
      // Rounded like kernels/batch.cu does: x is NumPy's to the last bit.
      value[k] = inside ? __fadd_rn(__fmul_rn(byte, scale), shift) : 0.0f;
      at[k] = row < C * s.rows ? s.at(c, i, col) : -1;
      col += right;
      row += down + (col >= s.pitch);
      if (col >= s.pitch) col -= s.pitch;
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
      if (at[k] < 0) break;
      s.x[at[k]] = value[k];
      if (gradients) s.dy[at[k]] = 0.0f;
    }
  }
}

// What stage 2 does with a sum over all features and taps, that of channel c at position (i, j) of
// the unit: the value of y, its squared error, and dy = gradient_scale * (y - x) * act'(y). Positions
// of the halo belong to the neighbours; here they only give dy.
template <bool gradients, class Shared>
__device__ __forceinline__ void finish_value(const Shared& s, const Unit& u, float value, int c,
                                             int i, int j, float* y, int H, int W,
                                             float gradient_scale, float& squared_error,
                                             float& sum_of_dy) {
  bool own = i >= u.own_i && j >= u.own_j;
  if (DECODER_TANH) value = bounded_tanh(value);
  int at = s.at(c, i + BORDER, j + BORDER);
  float error = value - s.x[at];
  if (own) squared_error = fmaf(error, error, squared_error);
  if (gradients) {
    float d = gradient_scale * error;
    if (DECODER_TANH) d *= 1.0f - value * value;
    s.dy[at] = s.kept(d);
    if (own) sum_of_dy += d;
  }
  if (y) y[((u.n * C + c) * H + u.top + i) * W + u.left + j] = value;
}

// One row of `partial`: the sums over the block, `from`, and of each thread's decoder_bias.
template <int PITCH>
__device__ __forceinline__ void store_gradients(const Weights<PITCH>& from,
                                                const float (&decoder_bias)[C], float* partial) {
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  if (lane < F) {
    for (int c = 0; c < C; ++c) {
      for (int tap = warp; tap < TAPS; tap += WARPS) {
        partial[(lane * C + c) * TAPS + tap] = from.encoder[c * TAPS + tap][lane];
        partial[F * PLANES + F + (c * F + lane) * TAPS + tap] = from.decoder[c * TAPS + tap][lane];
      }
    }
    if (warp == 0) partial[F * PLANES + lane] = from.encoder_bias[lane];
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    float total = block_sum<THREADS>(decoder_bias[c]);
    if (threadIdx.x == 0) partial[PARAMETERS - C + c] = total;
  }
}

__device__ __forceinline__ void store_totals(float error, float magnitude, double* totals) {
  double of_errors = block_sum<THREADS>((double)error);
  double of_magnitudes = SPARSE ? block_sum<THREADS>((double)magnitude) : 0.0;
  if (threadIdx.x == 0) {
    totals[0] = of_errors;
    totals[1] = of_magnitudes;
  }
}

// gradients[m] = sum over r of partial[r,m]; the last block also adds the totals.
__device__ __forceinline__ void reduce_pieces(const float* partial, const double* totals,
                                              float* gradients, double* total, long long R,
                                              long long P) {
  column_sums<THREADS>(partial, gradients, R, P);
  if (blockIdx.x != gridDim.x - 1) return;  // whole blocks leave
  for (int k = 0; k < 2; ++k) {
    double sum = 0.0;
    for (long long r = threadIdx.x; r < R; r += THREADS) sum += totals[2 * r + k];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) total[k] = sum;
  }
}
