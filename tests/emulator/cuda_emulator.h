// What a CUDA compiler gives a kernel for free, written for an ordinary C++17 compiler.
//
// The file is placed in front of a kernel's text. It names no standard C++ header, so that a kernel
// that needs one fails here as it would under NVRTC. Every launch runs on one operating-system
// thread: CUDA threads are fibers that change places only at barriers and warp collectives.
//
// This file has the qualifiers and vector types. It includes, in this order:
//   emu_fibers.h       fibers for threads, and the scheduler of a block
//   emu_errors.h       errors, signals, what -fsanitize=undefined calls
//   emu_collectives.h  barriers, warp shuffles and votes
//   emu_arithmetic.h   atomics, loads and stores, bit casts, mathematics
//   emu_launch.h       running a grid, and what Python calls

#ifndef CAE_EMULATOR_H
#define CAE_EMULATOR_H

#include <signal.h>
#include <sys/time.h>
#if !defined(__x86_64__) || defined(CAE_EMULATOR_UCONTEXT)
#include <ucontext.h>
#define EMU_UCONTEXT 1
#endif

#define CAE_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __builtin_assume(x) ((void)0)
// One section holds every static shared array, so that a block can start with all of them poisoned.
// `used` keeps the compiler from concluding that nothing but the visible code ever writes there.
#define __shared__ static __attribute__((used, section("emu_shared")))
#define EMU_DYNAMIC_SHARED(type, name) type* const name = (type*)emu::dynamic_shared

using size_t = decltype(sizeof(0));

#define EMU_VECTOR(T, S, A1, A2, A4)                                                             \
  struct alignas(A1) S##1 { T x; };                                                              \
  struct alignas(A2) S##2 { T x, y; };                                                           \
  struct S##3 { T x, y, z; };                                                                    \
  struct alignas(A4) S##4 { T x, y, z, w; };                                                     \
  static inline S##1 make_##S##1(T x) { return {x}; }                                            \
  static inline S##2 make_##S##2(T x, T y) { return {x, y}; }                                    \
  static inline S##3 make_##S##3(T x, T y, T z) { return {x, y, z}; }                            \
  static inline S##4 make_##S##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR(signed char, char, 1, 2, 4)
EMU_VECTOR(unsigned char, uchar, 1, 2, 4)
EMU_VECTOR(short, short, 2, 4, 8)
EMU_VECTOR(unsigned short, ushort, 2, 4, 8)
EMU_VECTOR(int, int, 4, 8, 16)
EMU_VECTOR(unsigned int, uint, 4, 8, 16)
EMU_VECTOR(long long, longlong, 8, 16, 16)
EMU_VECTOR(unsigned long long, ulonglong, 8, 16, 16)
EMU_VECTOR(float, float, 4, 8, 16)
EMU_VECTOR(double, double, 8, 16, 16)
#undef EMU_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

static uint3 threadIdx;  // of the thread that runs now; the scheduler sets it at every change
static uint3 blockIdx;
static dim3 blockDim;
static dim3 gridDim;
static constexpr int warpSize = 32;

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
void __asan_set_error_report_callback(void (*)(const char*));
}
#define EMU_NO_ASAN __attribute__((no_sanitize("address")))
#else
#define EMU_NO_ASAN
#endif

// The same layout is declared in compile.py. Everything a launch needs comes in here.
struct EmuLaunch {
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  unsigned flush_denormals;
  unsigned long long seed;
  long long seconds;  // of processor time, after which a launch counts as hanging
  char* stacks;  // max_threads stacks of stack_bytes each
  unsigned long long stack_bytes;
  char* message;  // receives the error, zero-terminated
  unsigned long long message_bytes;
  unsigned error_block[3], error_thread[3];
};

extern "C" {
extern unsigned char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));
int printf(const char*, ...);
int snprintf(char*, size_t, const char*, ...);
void* memcpy(void*, const void*, size_t);
void* memset(void*, int, size_t);
}

namespace emu {

using u32 = unsigned int;
using u64 = unsigned long long;

}  // namespace emu

#include "emu_fibers.h"
#include "emu_errors.h"
#include "emu_collectives.h"
#include "emu_arithmetic.h"
#include "emu_launch.h"

#endif
