// One operand of a matrix product on its way from device to shared memory, ROWS x TILE_K numbers in a
// step. A thread reads its share in pieces of four words and holds them in registers while the block
// multiplies the numbers of the step before. A word is PER neighbours along k.
//
//   K_RUNS, k is the contiguous axis:   row    |w w w w|w w w w|
//   else the rows are:                  word   |row row+1 row+2 row+3|
//
// Needs common.cuh and the constants THREADS and TILE_K.

template <bool K_RUNS, int ROWS, int PER = 1>
struct Operand {
  static constexpr int WORDS = TILE_K / PER;                  // along k
  static constexpr int ACROSS = (K_RUNS ? WORDS : ROWS) / 4;  // pieces side by side
  static constexpr int MINE = ROWS * WORDS / 4 / THREADS;     // pieces of a thread
  static_assert(ROWS * WORDS % (4 * THREADS) == 0, "every thread has as many pieces");

  const float* source;
  long long pitch;
  int row0, rows;
  bool wide;
  float4 held[MINE][PER];

  __device__ Operand(const float* source_, int pitch_, int row0_, int rows_)
      : source(source_), pitch(pitch_), row0(row0_), rows(rows_),
        wide(pitch_ % 4 == 0 && is_aligned(source_, 16)) {}

  // Where in the tile piece m of this thread begins. Neighbouring threads have neighbouring pieces.
  static __device__ __forceinline__ int row_of(int m) {
    const int e = threadIdx.x + m * THREADS;
    return K_RUNS ? e / ACROSS : e % ACROSS * 4;
  }
  static __device__ __forceinline__ int word_of(int m) {
    const int e = threadIdx.x + m * THREADS;
    return K_RUNS ? e % ACROSS * 4 : e / ACROSS;
  }

  // The numbers k0 .. k0 + TILE_K - 1 of each row, 0 outside.
  __device__ __forceinline__ void read(int k0, int k_end) {
#pragma unroll
    for (int m = 0; m < MINE; ++m) {
      const int row = row0 + row_of(m), k = k0 + word_of(m) * PER;
#pragma unroll
      for (int h = 0; h < PER; ++h) {
        if (K_RUNS) {
          const int left = row < rows ? k_end - (k + 4 * h) : 0;
          held[m][h] = read4(source + row * pitch + k + 4 * h, left, wide);
        } else {
          const int left = k + h < k_end ? rows - row : 0;
          held[m][h] = read4(source + (k + h) * pitch + row, left, wide);
        }
      }
    }
  }
};
