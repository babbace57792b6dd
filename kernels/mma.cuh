// A small matrix product by a warp on the tensor cores, and how float32 becomes what they take.
//
// A word of an operand holds, with BF16 = 0, one number in tf32: a float32 whose mantissa is rounded
// to 10 bits, ties away from zero; with BF16 = 1, two neighbours along k in bfloat16, 7 bits, ties to
// even, the first of them in the low half. Products are exact in float32, and sums are float32.
//
// SPLIT = 1 (with BF16 = 0) is float32's accuracy from tf32: a number is the sum of its rounding, big,
// and of what that leaves, small, cut off; a product is big*big + big*small + small*big. It lacks
// at most 3 * 2^-22 of itself, where float32's own rounding is 2^-24 (H. Ootomo, R. Yokota: "Recovering
// single precision accuracy from Tensor Cores", 2022). Infinities become NaN, as inf - inf is.
//
// Before sm_80 there is no such instruction (and cae-raw offers no such precision), and the emulator
// has none: there each lane computes its four sums with ordinary multiply-adds, from words rounded in
// the same way.

#if !defined(CAE_EMULATED) && __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1
#else
#define TENSOR_CORES 0
#endif

static_assert(!(SPLIT && BF16), "only tf32 is split");
[[maybe_unused]] constexpr int PER_WORD = BF16 ? 2 : 1;
constexpr unsigned TF32_BITS = 0xffffe000u;  // what tensor cores read of a float32
// Blocks per multiprocessor; with SPLIT, fragments take twice the registers, and the twin more still.
[[maybe_unused]] constexpr int MMA_BLOCKS = TENSOR_CORES ? (SPLIT ? 2 : 3) : 1;

// One word: v alone in tf32, or v and next in bfloat16.
__device__ __forceinline__ unsigned word(float v, float next) {
#if TENSOR_CORES
  unsigned rounded;
#if BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(rounded) : "f"(next), "f"(v));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(v));
#endif
  return rounded;
#else
  unsigned bits = __float_as_uint(v), after = __float_as_uint(next);
#if BF16
  bits = v == v ? bits + 0x7fffu + (bits >> 16 & 1) : 0x7fff0000u;
  after = next == next ? after + 0x7fffu + (after >> 16 & 1) : 0x7fff0000u;
  return (bits >> 16) | (after & 0xffff0000u);
#else
  return v == v ? (bits + 0x1000u) & TF32_BITS : 0x7fffe000u;
#endif
#endif
}

// d (16 x 8) += a (16 x 8 words) * b (8 words x 8). What of them a lane holds, with row = lane / 4
// and column = lane % 4:
//
//      a[0]: row,   word column        b[0]: word column,   column row       d[0], d[1]: row,
//      a[1]: row+8, word column        b[1]: word column+4, column row         columns 2*column, +1
//      a[2]: row,   word column+4                                            d[2], d[3]: row+8,
//      a[3]: row+8, word column+4                                              columns 2*column, +1
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if TENSOR_CORES
#if BF16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
#endif
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __shared__ unsigned words_of_warp[THREADS / WARP][6][WARP];
  unsigned(&words)[6][WARP] = words_of_warp[threadIdx.x / WARP];
  const int lane = threadIdx.x % WARP;
  for (int i = 0; i < 4; ++i) words[i][lane] = a[i];
  for (int i = 0; i < 2; ++i) words[4 + i][lane] = b[i];
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8; ++k) {
      const unsigned left = words[i / 2 + k / 4 * 2][row * 4 + k % 4];
      const unsigned right = words[4 + k / 4][column * 4 + k % 4];
      if (BF16) d[i] = fmaf(__uint_as_float(left << 16), __uint_as_float(right << 16), d[i]);
      d[i] = fmaf(__uint_as_float(left & (BF16 ? 0xffff0000u : TF32_BITS)),
                  __uint_as_float(right & (BF16 ? 0xffff0000u : TF32_BITS)), d[i]);
    }
  }
  __syncwarp();  // before the next product overwrites the words
#endif
}

// What a lane holds of an operand, n words, and with SPLIT what their rounding left.
template <int n>
struct Fragment {
  unsigned big[n], small[n];

  // Word i is v, with BF16 v and next.
  __device__ __forceinline__ void set(int i, float v, float next = 0.0f) {
    if (SPLIT) {
      // Rounded like word(), but without its test for infinity; and tensor cores do not read the bits
      // of small beyond tf32. 3 instructions instead of 8. Big may lose a NaN, small does not.
      big[i] = (__float_as_uint(v) + 0x1000u) & TF32_BITS;
      small[i] = __float_as_uint(v - __uint_as_float(big[i]));
    } else {
      big[i] = word(v, next);
    }
  }
};

// d += a * b, the small products first.
__device__ __forceinline__ void mma(float (&d)[4], const Fragment<4>& a, const Fragment<2>& b) {
  if (SPLIT) {
    mma(d, a.small, b.big);
    mma(d, a.big, b.small);
  }
  mma(d, a.big, b.big);
}

// sum += a * b. Tensor cores cut off what they add instead of rounding, so that a long sum drifts
// towards zero: with SPLIT, each product starts from zero and is added as float32 is.
__device__ __forceinline__ void add_product(float (&sum)[4], const Fragment<4>& a,
                                            const Fragment<2>& b) {
  if (!SPLIT) {
    mma(sum, a, b);
    return;
  }
  float product[4] = {};
  mma(product, a, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += product[i];
}
