// What conv2d.cu, conv2d_pool.cu and unpool_conv2d.cu share: convolution in tiles, with all channel
// counts and the window known at compile time. See cae_raw/ops/conv2d.py for the formulas and
// cae_raw/ops/conv2d_plan.py for the constants.
//
// Strips. The unit of work is a strip: PIXELS outputs below each other in one column.
//
//        band 0   band 1            The outputs are cut into bands of `tile_w` columns, a band into
//       +-------+-------+           strips numbered row by row, and `tile_strips` strips in sequence
//       | 0 1 2 | 0 1 2 |           make a tile. A tile may begin and end anywhere in a row, so that
//       | | | | | | | | |  PIXELS   few threads idle whatever the size of the image.
//       | 3 4 5 | 3 4 5 |
//       | | | | | | | | |           Lanes of a warp are neighbouring columns: shared memory is read
//       +-------+-------+           without bank conflicts, and device memory is written in runs.
//
// A column of (PIXELS-1)*SH + KH inputs, read once, serves all PIXELS outputs and all KH taps of one
// window column. The region of x under a tile is (rows x columns) floats per channel; a few channels
// of it and their weights are staged in shared memory at a time.

// Where tile `piece` lies. All of it follows from the tile's number.
struct Tile {
  long long n;          // image
  int band, strip0;     // band of columns, first strip in it
  int strips;           // how many strips, at most tile_strips
  int row0, rows;       // rows of the staged region: first, and how many
  int column0, columns;
};

// The geometry of one map of outputs cut into tiles.
template <int PIXELS>
struct Tiling {
  int OW, tile_w, tile_strips;
  int bands, strips_per_band, tiles_per_band;

  __device__ Tiling(int OH, int OW_, int tile_w_, int tile_strips_)
      : OW(OW_), tile_w(tile_w_), tile_strips(tile_strips_) {
    bands = ceil_div(OW, tile_w);
    strips_per_band = ceil_div(OH, PIXELS) * tile_w;
    tiles_per_band = ceil_div(strips_per_band, tile_strips);
  }

  __device__ int tiles(int N) const { return N * bands * tiles_per_band; }

  // taps_h x taps_w: the window; stride_h, stride_w: the step between outputs, in inputs.
  template <int taps_h, int taps_w, int stride_h, int stride_w>
  __device__ Tile tile(int number) const {
    Tile t;
    int tile_in_band;
    t.n = divide_piece(divide_piece(number, tiles_per_band, tile_in_band), bands, t.band);
    t.strip0 = tile_in_band * tile_strips;
    t.strips = min(tile_strips, strips_per_band - t.strip0);
    int first = t.strip0 / tile_w, last = (t.strip0 + t.strips - 1) / tile_w;  // rows of strips
    t.row0 = first * PIXELS * stride_h;
    t.rows = ((last - first + 1) * PIXELS - 1) * stride_h + taps_h;
    t.column0 = t.band * tile_w * stride_w;
    t.columns = (tile_w - 1) * stride_w + taps_w;
    return t;
  }
};

// A map as it stands in memory.
struct Whole {
  const float* values;  // (maps, height, width)
  int height, width;

  __device__ __forceinline__ float read(long long map, int h, int v) const {
    return values[map * ((long long)height * width) + ((long long)h * width + v)];
  }
};

// A map of which only what 2x2 max-pooling left is in memory. Each window holds one value, at the
// place the mask names, and zeros; a mask that names no place in the window leaves zeros.
//
//      values  a     mask  2        the map   0  0        2*height x 2*width; a last odd row or
//                                             a  0        column, in no window, counts as outside
struct Unpooled {
  const float* values;        // (maps, height / 2, width / 2)
  const unsigned char* mask;  // (maps, height / 2, width / 2)
  int height, width;

  __device__ Unpooled(const float* values_, const unsigned char* mask_, int pooled_height,
                      int pooled_width)
      : values(values_), mask(mask_), height(2 * pooled_height), width(2 * pooled_width) {}

  __device__ __forceinline__ float read(long long map, int h, int v) const {
    const int rows = height / 2, columns = width / 2;
    const long long at = map * ((long long)rows * columns) + ((long long)(h / 2) * columns + v / 2);
    const float value = values[at];  // asked for at once, not after the mask has come
    return mask[at] == h % 2 * 2 + v % 2 ? value : 0.0f;
  }
};

// Fill staged[c * rows*columns + r * columns + k] with the region of a map under a tile, for
// `channels` maps of the source from `map` on. They may be dilated: DH-1 rows and DW-1 columns of
// zeros between their own. Row 0 of the region is row `top` of the dilated map.
template <int THREADS, int DH, int DW, int CAPACITY, class Source>
__device__ __forceinline__ void stage(float (&staged)[CAPACITY], const Source& source,
                                      long long map, int channels, int top, int left, int rows,
                                      int columns) {
  int region = rows * columns;
  for (int e = threadIdx.x; e < region; e += THREADS) {
    int r = e / columns;
    int h = top + r, v = left + e - r * columns;
    bool inside = h >= 0 && v >= 0 && h % DH == 0 && v % DW == 0;
    h /= DH;
    v /= DW;
    inside = inside && h < source.height && v < source.width;
    for (int c = 0; c < channels; ++c) {
      staged[c * region + e] = inside ? source.read(map + c, h, v) : 0.0f;
    }
  }
}

// Where a thread's sums go: those of PIXELS outputs from (row, column) on, for each of its channels.
// `map` is the number of the first channel's map, `channels` how many of them exist; `inside` is
// false for a lane without a strip. All lanes of a warp call `store` together.

// To a map in memory, with bias and activation. gate: times 1 where it is above 0, times 0 elsewhere,
// which is the derivative of the ReLU that made the map `gate`.
struct ToMap {
  float* y;           // (maps, height, width)
  const float* b;     // (channels) or null
  const float* gate;  // (maps, height, width) or null
  int height, width, activation;

  template <int PER_THREAD, int PIXELS>
  __device__ __forceinline__ void store(const float (&sum)[PER_THREAD][PIXELS], long long map,
                                        int channel, int channels, int row, int column,
                                        bool inside) const {
    if (!inside || column >= width) return;
#pragma unroll
    for (int t = 0; t < PER_THREAD; ++t) {
      if (channel + t >= channels) break;
      const float bias = b ? b[channel + t] : 0.0f;
      // Addresses stepped by whole rows take fewer registers than one for each output.
      const long long first = ((map + channel + t) * height + row) * width + column;
      float* to = y + first;
      const float* of_gate = gate + first;
#pragma unroll
      for (int k = 0; k < PIXELS; ++k, to += width, of_gate += width) {
        if (row + k < height) {
          float v = activate(sum[t][k] + bias, activation);
          // A product, not a choice, so that a NaN is seen even where the unit is off.
          if (gate) v *= *of_gate > 0.0f ? 1.0f : 0.0f;
          *to = v;
        }
      }
    }
  }
};

// To what 2x2 max-pooling leaves of the map. The left and the right column of a window belong to
// neighbouring lanes, which tell each other their values; tiles and bands begin at even columns.
//
//      lane 2k      lane 2k+1
//      sum[t][0]    sum[t][0]     window 0      the left lane writes the maximum,
//      sum[t][1]    sum[t][1]                   the right lane its place in the window
//      sum[t][2]    sum[t][2]     window 1
struct ToPooled {
  float* y;             // (maps, height, width): the size after pooling
  unsigned char* mask;  // (maps, height, width)
  const float* b;       // (channels)
  int height, width, activation;

  template <int PER_THREAD, int PIXELS>
  __device__ __forceinline__ void store(const float (&sum)[PER_THREAD][PIXELS], long long map,
                                        int channel, int channels, int row, int column,
                                        bool inside) const {
    static_assert(PIXELS % 2 == 0, "a strip must hold whole windows");
    const bool right = column % 2;
#pragma unroll
    for (int t = 0; t < PER_THREAD; ++t) {
      if (channel + t >= channels) break;  // a whole warp
      const float bias = b[channel + t];
      const long long first = (map + channel + t) * height * width;
#pragma unroll
      for (int k = 0; k < PIXELS; k += 2) {
        const float above = activate(sum[t][k] + bias, activation);
        const float below = activate(sum[t][k + 1] + bias, activation);
        const float beside_above = __shfl_xor_sync(ALL_LANES, above, 1);
        const float beside_below = __shfl_xor_sync(ALL_LANES, below, 1);
        const float taps[4] = {right ? beside_above : above, right ? above : beside_above,
                               right ? beside_below : below, right ? below : beside_below};
        float best = taps[0];
        int winner = 0;
#pragma unroll
        for (int tap = 1; tap < 4; ++tap) {
          // As in maxpool_forward: the first maximum wins, and NaN over all.
          if (!(taps[tap] <= best) && best == best) {
            best = taps[tap];
            winner = tap;
          }
        }
        const int i = (row + k) / 2, j = column / 2;
        if (inside && i < height && j < width) {
          const long long at = first + (long long)i * width + j;
          if (right) mask[at] = (unsigned char)winner;
          else y[at] = best;
        }
      }
    }
  }
};

// To what a mask selects of the map: one value of each window. The lane that has it writes it.
struct ToSelected {
  float* y;                   // (maps, height, width): one per window
  const unsigned char* mask;  // (maps, height, width)
  const float* gate;          // (maps, height, width) or null, as in ToMap
  int height, width;

  template <int PER_THREAD, int PIXELS>
  __device__ __forceinline__ void store(const float (&sum)[PER_THREAD][PIXELS], long long map,
                                        int channel, int channels, int row, int column,
                                        bool inside) const {
    static_assert(PIXELS % 2 == 0, "a strip must hold whole windows");
    const int j = column / 2;
    if (!inside || j >= width) return;
#pragma unroll
    for (int t = 0; t < PER_THREAD; ++t) {
      if (channel + t >= channels) break;
      const long long first = (map + channel + t) * height * width;
#pragma unroll
      for (int k = 0; k < PIXELS; k += 2) {
        const int i = (row + k) / 2;
        if (i >= height) break;
        const long long at = first + (long long)i * width + j;
        const int winner = mask[at];
        if (winner % 2 != column % 2) continue;
        float v = winner < 2 ? sum[t][k] : sum[t][k + 1];
        if (winner > 3) v = 0.0f;  // a mask that names no place in the window
        if (gate) v *= gate[at] > 0.0f ? 1.0f : 0.0f;
        y[at] = v;
      }
    }
  }
};

// What tells forward and backward_input apart. `inputs` and `outputs` are channels of the map that
// is read and of the map that is written.
struct Forward {
  static constexpr int inputs = C, outputs = O;
  static constexpr int stride_h = SH, stride_w = SW, dilation_h = 1, dilation_w = 1;
  static constexpr int threads = FWD_THREADS, pixels = FWD_PIXELS, strips = FWD_STRIPS;
  static constexpr int per_thread = FWD_PER_THREAD, groups = FWD_GROUPS;
  static constexpr int chunk = FWD_CHUNK, region = FWD_REGION;
  static __device__ __forceinline__ long long weight(int out, int in, int tap) {
    return ((long long)out * C + in) * (KH * KW) + tap;
  }
};

// The gradient of the input is a convolution too: of dy, with S-1 zeros put between its values, with
// every window turned by 180 degrees, input and output channels exchanged, and a padding of K-1-P.
struct BackwardInput {
  static constexpr int inputs = O, outputs = C;
  static constexpr int stride_h = 1, stride_w = 1, dilation_h = SH, dilation_w = SW;
  static constexpr int threads = INP_THREADS, pixels = INP_PIXELS, strips = INP_STRIPS;
  static constexpr int per_thread = INP_PER_THREAD, groups = INP_GROUPS;
  static constexpr int chunk = INP_CHUNK, region = INP_REGION;
  static __device__ __forceinline__ long long weight(int out, int in, int tap) {
    return ((long long)in * C + out) * (KH * KW) + (KH * KW - 1 - tap);
  }
};

// A block computes one tile for `groups` groups of `per_thread` output channels. Thread t has strip
// t % strips and group t / strips, so that a warp shares its weights and reads them by broadcast.
// The tiles cover OH x OW outputs.
template <class V, class Source, class Sink>
__device__ void convolve(const Source source, const float* w, const Sink sink, int N, int OH,
                         int OW, int PH, int PW, int tile_w, int tile_strips) {
  constexpr int TAPS = KH * KW, UNROLL = KW <= 4 ? KW : 1;
  constexpr int COLUMN = (V::pixels - 1) * V::stride_h + KH;  // inputs under one strip
  // Weights of a thread start at a multiple of 4 floats, for 16-byte reads. The 4 floats behind a
  // row spread the transposing stores over the banks.
  constexpr int SLOT = ceil_div(V::per_thread, 4) * 4;
  constexpr int PITCH = V::groups * SLOT + 4;
  constexpr int OUT_BLOCK = V::groups * V::per_thread;
  constexpr int OUT_BLOCKS = ceil_div(V::outputs, OUT_BLOCK);
  __shared__ float x_staged[V::chunk * V::region];
  __shared__ __align__(16) float w_staged[V::chunk * TAPS * PITCH];

  const Tiling<V::pixels> tiling(OH, OW, tile_w, tile_strips);
  const int lane = threadIdx.x % V::strips, group = threadIdx.x / V::strips;

  FOR_EACH_BLOCK(piece, tiling.tiles(N) * OUT_BLOCKS) {
    int out_block;  // innermost: blocks that read the same part of x run at the same time
    const int number = divide_piece(piece, OUT_BLOCKS, out_block);
    const Tile tile = tiling.template tile<KH, KW, V::stride_h, V::stride_w>(number);
    const int out0 = out_block * OUT_BLOCK;
    const int region = tile.rows * tile.columns;
    // A lane without a strip computes the first one once more and stores nothing.
    const int strip = tile.strip0 + (lane < tile.strips ? lane : 0);
    const int strip_row = strip / tile_w, strip_column = strip % tile_w;
    const int corner = (strip_row * V::pixels * V::stride_h - tile.row0) * tile.columns +
                       strip_column * V::stride_w;  // of the strip's first window, in the region

    float sum[V::per_thread][V::pixels] = {};
    for (int c0 = 0; c0 < V::inputs; c0 += V::chunk) {
      const int channels = min(V::chunk, V::inputs - c0);
      stage<V::threads, V::dilation_h, V::dilation_w>(
          x_staged, source, tile.n * V::inputs + c0, channels, tile.row0 - PH, tile.column0 - PW,
          tile.rows, tile.columns);
      for (int e = threadIdx.x; e < OUT_BLOCK * channels * TAPS; e += V::threads) {
        int out = e / (channels * TAPS), k = e - out * (channels * TAPS);
        int slot = out / V::per_thread * SLOT + out % V::per_thread;
        w_staged[k * PITCH + slot] =
            out0 + out < V::outputs ? w[V::weight(out0 + out, c0 + k / TAPS, k % TAPS)] : 0.0f;
      }
      __syncthreads();
      for (int c = 0; c < channels; ++c) {
#pragma unroll UNROLL
        for (int q = 0; q < KW; ++q) {
          float column[COLUMN];
#pragma unroll
          for (int r = 0; r < COLUMN; ++r) {
            column[r] = x_staged[c * region + corner + r * tile.columns + q];
          }
#pragma unroll
          for (int p = 0; p < KH; ++p) {
            const int row = ((c * KH + p) * KW + q) * PITCH + group * SLOT;
            float weight[V::per_thread];
#pragma unroll
            for (int t = 0; t < V::per_thread; ++t) weight[t] = w_staged[row + t];
#pragma unroll
            for (int t = 0; t < V::per_thread; ++t) {
#pragma unroll
              for (int k = 0; k < V::pixels; ++k) {
                sum[t][k] = fmaf(weight[t], column[k * V::stride_h + p], sum[t][k]);
              }
            }
          }
        }
      }
      __syncthreads();  // before the next chunk overwrites what is staged
    }

    sink.store(sum, tile.n * V::outputs, out0 + group * V::per_thread, V::outputs,
               strip_row * V::pixels, tile.band * tile_w + strip_column, lane < tile.strips);
  }
}

// A warp owns WGT_PER_THREAD output channels, one input channel and TAPS_H x TAPS_W taps, and keeps
// all their sums in the registers of each lane; a lane has every 32nd strip. The lanes are added up
// only once, after the last tile of the piece. dy is read by one warp only where a block has one
// input channel, so it goes from device memory to registers; x is staged.
template <class Gradient, class Source>
__device__ void weight_sums(const Gradient dy, const Source x, float* partial, int N, int OH,
                            int OW, int PH, int PW, int tile_w, int tile_strips, int R) {
  constexpr int PIXELS = WGT_PIXELS, TAPS_H = WGT_TAPS_H, TAPS_W = WGT_TAPS_W;
  constexpr int COLUMN = (PIXELS - 1) * SH + TAPS_H;  // inputs under one strip
  constexpr int OUT_BLOCK = WGT_OUT_WARPS * WGT_PER_THREAD;
  constexpr int OUT_BLOCKS = ceil_div(O, OUT_BLOCK), IN_BLOCKS = ceil_div(C, WGT_IN_WARPS);
  constexpr int TAP_COLUMNS = ceil_div(KW, TAPS_W), TAP_ROWS = ceil_div(KH, TAPS_H);
  constexpr int UNITS = OUT_BLOCKS * IN_BLOCKS * TAP_ROWS * TAP_COLUMNS;
  __shared__ float x_staged[WGT_IN_WARPS * WGT_REGION];

  const Tiling<PIXELS> tiling(OH, OW, tile_w, tile_strips);
  const int tiles = tiling.tiles(N), per_piece = tiles / R, longer = tiles % R;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

  FOR_EACH_BLOCK(piece, R * UNITS) {
    int out_block, in_block, tap_row, tap_column;
    const int unit_row = divide_piece(piece, OUT_BLOCKS, out_block);
    const int unit = divide_piece(unit_row, IN_BLOCKS, in_block);
    const int r = divide_piece(divide_piece(unit, TAP_ROWS, tap_row), TAP_COLUMNS, tap_column);
    // The first `longer` pieces have one tile more than the others.
    const int first = r * per_piece + min(r, longer), end = first + per_piece + (r < longer);
    const int o0 = out_block * OUT_BLOCK + warp % WGT_OUT_WARPS * WGT_PER_THREAD;
    const int c0 = in_block * WGT_IN_WARPS, c = c0 + warp / WGT_OUT_WARPS;
    const int p0 = tap_row * TAPS_H, q0 = tap_column * TAPS_W;

    float sum[WGT_PER_THREAD][TAPS_H][TAPS_W] = {};
    for (int number = first; number < end; ++number) {
      const Tile tile = tiling.template tile<TAPS_H, TAPS_W, SH, SW>(number);
      const int region = tile.rows * tile.columns;
      stage<WGT_THREADS, 1, 1>(x_staged, x, tile.n * C + c0, min(WGT_IN_WARPS, C - c0),
                               tile.row0 - PH + p0, tile.column0 - PW + q0, tile.rows,
                               tile.columns);
      __syncthreads();
      if (c < C) {
        for (int s = lane; s < tile.strips; s += WARP) {
          const int strip_row = (tile.strip0 + s) / tile_w, strip_column = (tile.strip0 + s) % tile_w;
          const int j = tile.band * tile_w + strip_column;
          const int corner = (c - c0) * region + strip_column * SW +
                             (strip_row * PIXELS * SH - tile.row0) * tile.columns;
          float d[WGT_PER_THREAD][PIXELS];
#pragma unroll
          for (int t = 0; t < WGT_PER_THREAD; ++t) {
#pragma unroll
            for (int k = 0; k < PIXELS; ++k) {
              const int i = strip_row * PIXELS + k;
              const bool inside = o0 + t < O && i < OH && j < OW;
              d[t][k] = inside ? dy.read(tile.n * O + o0 + t, i, j) : 0.0f;
            }
          }
#pragma unroll
          for (int q = 0; q < TAPS_W; ++q) {
            float column[COLUMN];
#pragma unroll
            for (int k = 0; k < COLUMN; ++k) {
              column[k] = x_staged[corner + k * tile.columns + q];
            }
#pragma unroll
            for (int t = 0; t < WGT_PER_THREAD; ++t) {
#pragma unroll
              for (int p = 0; p < TAPS_H; ++p) {
#pragma unroll
                for (int k = 0; k < PIXELS; ++k) {
                  sum[t][p][q] = fmaf(d[t][k], column[k * SH + p], sum[t][p][q]);
                }
              }
            }
          }
        }
      }
      __syncthreads();  // before the next tile overwrites what is staged
    }

    if (c >= C) continue;  // a whole warp
#pragma unroll
    for (int t = 0; t < WGT_PER_THREAD; ++t) {
#pragma unroll
      for (int p = 0; p < TAPS_H; ++p) {
#pragma unroll
        for (int q = 0; q < TAPS_W; ++q) {
          const float total = warp_sum(sum[t][p][q]);
          if (lane == 0 && o0 + t < O && p0 + p < KH && q0 + q < KW) {
            partial[((((long long)r * O + o0 + t) * C + c) * KH + p0 + p) * KW + q0 + q] = total;
          }
        }
      }
    }
  }
}
