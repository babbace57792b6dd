// Functions that a CUDA compiler knows without a header.
#pragma once

// Integers only: a float atomic makes a sum depend on timing, so it does not compile.
#define EMU_ATOMIC(T)                                                                            \
  static inline T atomicAdd(T* p, T v) { T o = *p; *p = (T)((unsigned long long)o + (unsigned long long)v); return o; } \
  static inline T atomicMax(T* p, T v) { T o = *p; if (v > o) *p = v; return o; }                \
  static inline T atomicMin(T* p, T v) { T o = *p; if (v < o) *p = v; return o; }                \
  static inline T atomicExch(T* p, T v) { T o = *p; *p = v; return o; }                          \
  static inline T atomicCAS(T* p, T c, T v) { T o = *p; if (o == c) *p = v; return o; }          \
  static inline T atomicAnd(T* p, T v) { T o = *p; *p = o & v; return o; }                       \
  static inline T atomicOr(T* p, T v) { T o = *p; *p = o | v; return o; }                        \
  static inline T atomicXor(T* p, T v) { T o = *p; *p = o ^ v; return o; }
EMU_ATOMIC(int)
EMU_ATOMIC(unsigned int)
EMU_ATOMIC(unsigned long long)
#undef EMU_ATOMIC
static inline int atomicSub(int* p, int v) { int o = *p; *p = (int)((unsigned)o - (unsigned)v); return o; }
static inline unsigned atomicSub(unsigned* p, unsigned v) { unsigned o = *p; *p = o - v; return o; }
static inline unsigned atomicInc(unsigned* p, unsigned v) { unsigned o = *p; *p = o >= v ? 0 : o + 1; return o; }

static inline void __threadfence() { asm volatile("" ::: "memory"); }
static inline void __threadfence_block() { asm volatile("" ::: "memory"); }
static inline void __threadfence_system() { asm volatile("" ::: "memory"); }

#define EMU_LOAD(name) template <class T> static inline T name(const T* p) { return *p; }
EMU_LOAD(__ldg) EMU_LOAD(__ldca) EMU_LOAD(__ldcg) EMU_LOAD(__ldcs) EMU_LOAD(__ldcv) EMU_LOAD(__ldlu)
#undef EMU_LOAD
#define EMU_STORE(name) template <class T> static inline void name(T* p, T v) { *p = v; }
EMU_STORE(__stwb) EMU_STORE(__stcg) EMU_STORE(__stcs) EMU_STORE(__stwt)
#undef EMU_STORE

template <class To, class From>
static inline To emu_bits(From f) {
  static_assert(sizeof(To) == sizeof(From), "");
  To t;
  __builtin_memcpy(&t, &f, sizeof t);
  return t;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}

extern "C" {
#define EMU_MATH1(g) float g##f(float); double g(double);
#define EMU_MATH2(g) float g##f(float, float); double g(double, double);
EMU_MATH1(exp) EMU_MATH1(exp2) EMU_MATH1(expm1) EMU_MATH1(log) EMU_MATH1(log2) EMU_MATH1(log10)
EMU_MATH1(log1p) EMU_MATH1(sqrt) EMU_MATH1(cbrt) EMU_MATH1(sin) EMU_MATH1(cos) EMU_MATH1(tan)
EMU_MATH1(tanh) EMU_MATH1(sinh) EMU_MATH1(cosh) EMU_MATH1(erf) EMU_MATH1(fabs) EMU_MATH1(floor)
EMU_MATH1(ceil) EMU_MATH1(trunc) EMU_MATH1(round) EMU_MATH1(rint)
EMU_MATH2(pow) EMU_MATH2(fmin) EMU_MATH2(fmax) EMU_MATH2(fmod) EMU_MATH2(copysign) EMU_MATH2(atan2)
float fmaf(float, float, float);
double fma(double, double, double);
int abs(int);
}
#undef EMU_MATH1
#undef EMU_MATH2
#define EMU_FLOAT1(g) static inline float g(float x) { return g##f(x); }
EMU_FLOAT1(exp) EMU_FLOAT1(log) EMU_FLOAT1(sqrt) EMU_FLOAT1(tanh) EMU_FLOAT1(fabs) EMU_FLOAT1(floor)
EMU_FLOAT1(ceil) EMU_FLOAT1(sin) EMU_FLOAT1(cos) EMU_FLOAT1(trunc) EMU_FLOAT1(round)
#undef EMU_FLOAT1
static inline float pow(float a, float b) { return powf(a, b); }
static inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
static inline float abs(float x) { return fabsf(x); }
static inline double abs(double x) { return fabs(x); }
static inline long long abs(long long x) { return x < 0 ? -x : x; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }

// The fast versions of the hardware are less exact than these; tests must not count on either.
static inline float __expf(float x) { return expf(x); }
static inline float __logf(float x) { return logf(x); }
static inline float __sinf(float x) { return sinf(x); }
static inline float __cosf(float x) { return cosf(x); }
static inline float __powf(float x, float y) { return powf(x, y); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline bool isnan(float x) { return __builtin_isnan(x); }
static inline bool isnan(double x) { return __builtin_isnan(x); }
static inline bool isinf(float x) { return __builtin_isinf(x); }
static inline bool isinf(double x) { return __builtin_isinf(x); }
static inline bool isfinite(float x) { return __builtin_isfinite(x); }
static inline bool isfinite(double x) { return __builtin_isfinite(x); }

#define EMU_MINMAX(T)                                                                            \
  static inline constexpr T min(T a, T b) { return b < a ? b : a; }                              \
  static inline constexpr T max(T a, T b) { return a < b ? b : a; }
EMU_MINMAX(int) EMU_MINMAX(unsigned) EMU_MINMAX(long) EMU_MINMAX(unsigned long)
EMU_MINMAX(long long) EMU_MINMAX(unsigned long long)
#undef EMU_MINMAX
static inline constexpr unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline constexpr unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
static inline constexpr unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline constexpr unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

[[noreturn]] static inline void __trap() { emu::fail("the kernel called __trap()"); }
#define assert(x) ((x) ? (void)0 : emu::fail("an assertion failed: " #x))
