// Runs the blocks of a grid, checks shared memory around them, and describes kernels to Python.
#pragma once

namespace emu {

static const unsigned char red_zone_byte = 0xfa;

static EMU_NO_ASAN void fill(unsigned char* begin, unsigned char* end, unsigned char byte) {
#if defined(__SANITIZE_ADDRESS__)  // memset is intercepted and would object to poisoned gaps
  for (volatile unsigned char* p = begin; p < end; ++p) *p = byte;
#else
  if (begin < end) memset(begin, byte, (size_t)(end - begin));
#endif
}

static bool intact(const unsigned char* p) {
#if !defined(__SANITIZE_ADDRESS__)
  u64 all = 0xfafafafafafafafaULL, word;
  for (u32 i = 0; i < red_zone; i += 8) {
    memcpy(&word, p + i, 8);
    if (word != all) return false;
  }
#endif
  return true;
}

// A zone after `bytes` of dynamic shared memory that a float cannot write by chance.
static void arm_shared(u32 bytes) {
  fill(shared_memory, dynamic_shared, red_zone_byte);
  fill(dynamic_shared + bytes, dynamic_shared + bytes + red_zone, red_zone_byte);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared_memory, sizeof shared_memory);
  __asan_poison_memory_region(shared_memory, red_zone);
  __asan_poison_memory_region(dynamic_shared + bytes, sizeof shared_memory - red_zone - bytes);
#endif
}

static void run_block(u64 number) {
  EmuLaunch* l = launch_info;
  blockIdx = {(u32)(number % l->grid[0]), (u32)(number / l->grid[0] % l->grid[1]),
              (u32)(number / l->grid[0] / l->grid[1])};
  // 0xff in every byte is a NaN, so what is read before it is written shows in the result.
  if (__start_emu_shared) fill(__start_emu_shared, __stop_emu_shared, 0xff);
  if (l->shared_bytes) fill(dynamic_shared, dynamic_shared + l->shared_bytes, 0xff);
  exited_count = 0;
  last_exited = nullptr;
  barrier.arrived = 0;
  for (u32 i = 0; i < (thread_count + 31) / 32; ++i) warps[i] = {0, 0};
  for (u32 i = 0; i < thread_count; ++i) {
    threads[i].worker = nullptr;
    threads[i].state = NEW;
    ready[i] = &threads[i];
  }
  ready_count = thread_count;
  choose_starved();
  Thread* first = pick();
  first->worker = take_worker();
  enter(first);
  context_switch(main_context, first->worker->context);
  if (!failed && !(intact(shared_memory) && intact(dynamic_shared + l->shared_bytes))) {
    bool after = intact(shared_memory);
    record(after ? "a write after the end of dynamic shared memory"
                 : "a write before the start of dynamic shared memory", nullptr);
  }
}

static u64 greatest_divisor(u64 a, u64 b) { return b ? greatest_divisor(b, a % b) : a; }

#if defined(__SANITIZE_ADDRESS__)
static void on_report(const char* report) { record(report, current); }
#endif

static int run_grid(EmuLaunch* l, void (*call)(void*), void* args) {
  launch_info = l;
  kernel_call = call;
  kernel_args = args;
  failed = false;
  free_workers = nullptr;
  workers_made = 0;
  random_state = l->seed * 0x9e3779b97f4a7c15ULL + 0x632be59bd9b4e019ULL;
  random_below(2);
  gridDim = dim3(l->grid[0], l->grid[1], l->grid[2]);
  blockDim = dim3(l->block[0], l->block[1], l->block[2]);
  thread_count = l->block[0] * l->block[1] * l->block[2];
  for (u32 i = 0; i < thread_count; ++i) {
    threads[i].linear = i;
    threads[i].index = {i % l->block[0], i / l->block[0] % l->block[1],
                        i / l->block[0] / l->block[1]};
  }
  arm_shared(l->shared_bytes);
#if defined(__x86_64__)
  u32 control = __builtin_ia32_stmxcsr();
  if (l->flush_denormals) __builtin_ia32_ldmxcsr(control | 0x8040);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __asan_set_error_report_callback(on_report);
  char here;
  main_context.stack = &here - 256 * 1024;  // some of the caller's stack; only its rough place matters
  main_context.stack_bytes = 512 * 1024;
#endif
  {
    SignalGuard guard;
    // Blocks come in the order start, start + step, start + 2 step, ... modulo their number.
    u64 blocks = (u64)l->grid[0] * l->grid[1] * l->grid[2];
    u64 step = blocks < 2 ? 1 : 1 + random_below((u32)(blocks > 0xffffffffu ? 0xffffffffu : blocks));
    while (greatest_divisor(step, blocks) != 1) ++step;
    u64 at = random_below((u32)(blocks > 0xffffffffu ? 0xffffffffu : blocks));
    step %= blocks;
    for (u64 i = 0; i < blocks && !failed; ++i) {
      run_block(at);
      at = (u64)(((unsigned __int128)at + step) % blocks);
    }
  }
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(control);
#endif
#if defined(__SANITIZE_ADDRESS__)
  // What an abandoned fiber left marked must not be held against the next launch.
  __asan_unpoison_memory_region(l->stacks, workers_made * l->stack_bytes);
#endif
  return failed;
}

template <class... A> struct Types {};
template <int... I> struct Numbers {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { using type = Numbers<I...>; };
template <class T> struct Plain { using type = T; };
template <class T> struct Plain<const T> { using type = T; };

template <class... A>
struct Kernel {
  void (*function)(A...);
  void** arguments;
  template <int... I>
  void call(Numbers<I...>) { function(*(typename Plain<A>::type*)arguments[I]...); }
  static void run(void* self) { ((Kernel*)self)->call(typename Count<sizeof...(A)>::type()); }
};

template <class... A>
static int launch(void (*function)(A...), EmuLaunch* l, void** arguments) {
  Kernel<A...> kernel{function, arguments};
  return run_grid(l, &Kernel<A...>::run, &kernel);
}

// A NumPy type code for each C type, "*" before it for a pointer, "&" for a pointer to const.
template <class T> struct Code { static constexpr const char* text = "?"; };
#define EMU_CODE(T, code) template <> struct Code<T> { static constexpr const char* text = code; };
EMU_CODE(bool, "b1") EMU_CODE(char, "i1") EMU_CODE(signed char, "i1") EMU_CODE(unsigned char, "u1")
EMU_CODE(short, "i2") EMU_CODE(unsigned short, "u2") EMU_CODE(int, "i4") EMU_CODE(unsigned, "u4")
EMU_CODE(long, "i8") EMU_CODE(unsigned long, "u8") EMU_CODE(long long, "i8")
EMU_CODE(unsigned long long, "u8") EMU_CODE(float, "f4") EMU_CODE(double, "f8")
EMU_CODE(float2, "f4:8") EMU_CODE(float4, "f4:16") EMU_CODE(int2, "i4:8") EMU_CODE(int4, "i4:16")
EMU_CODE(uint2, "u4:8") EMU_CODE(uint4, "u4:16") EMU_CODE(uchar4, "u1:4") EMU_CODE(double2, "f8:16")
#undef EMU_CODE
template <class T> struct Kind { static constexpr const char* text = ""; using base = T; };
template <class T> struct Kind<T*> { static constexpr const char* text = "*"; using base = T; };
template <class T> struct Kind<const T*> { static constexpr const char* text = "&"; using base = T; };

template <class T>
static int describe(char* to, size_t room) {
  using P = typename Plain<T>::type;
  return snprintf(to, room, "%s%s ", Kind<P>::text, Code<typename Kind<P>::base>::text);
}
template <class... A>
static const char* signature(void (*)(A...)) {
  static char text[8 * (sizeof...(A) + 1)];
  int n = 0;
  text[0] = 0;
  ((n += describe<A>(text + n, sizeof text - n)), ...);
  return text;
}
constexpr int first(int a, int = 0, int = 0) { return a; }

}  // namespace emu

#define EMU_EXPORT(name)                                                                 \
  extern "C" __attribute__((visibility("default"))) int emu_launch_##name(EmuLaunch* l,          \
                                                                          void** arguments) {    \
    return emu::launch(&name, l, arguments);                                                     \
  }                                                                                              \
  extern "C" __attribute__((visibility("default"))) const char* emu_signature_##name() {         \
    return emu::signature(&name);                                                                \
  }                                                                                              \
  extern "C" __attribute__((visibility("default"))) int emu_bounds_##name() { return emu_bounds_of_##name; }
