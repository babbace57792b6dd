// How a launch ends early: errors with their place, signals, and findings of -fsanitize=undefined.
#pragma once

namespace emu {

static bool failed;
static bool in_block;

[[noreturn]] static void leave_kernel() {
  Context abandoned;
  abandoned.stack = nullptr;
  abandoned.stack_bytes = 0;
  context_switch(abandoned, main_context);
  __builtin_unreachable();
}

static void record(const char* text, const Thread* t) {
  if (failed) return;
  failed = true;
  snprintf(launch_info->message, launch_info->message_bytes, "%s", text);
  const unsigned block[3] = {blockIdx.x, blockIdx.y, blockIdx.z};
  for (int i = 0; i < 3; ++i) launch_info->error_block[i] = block[i];
  launch_info->error_thread[0] = t ? t->index.x : 0;
  launch_info->error_thread[1] = t ? t->index.y : 0;
  launch_info->error_thread[2] = t ? t->index.z : 0;
}

static void fail(const char* text) {
  record(text, current);
  leave_kernel();
}

static const char* const op_names[] = {"__syncwarp", "__shfl_sync", "__shfl_up_sync",
                                       "__shfl_down_sync", "__shfl_xor_sync", "__ballot_sync",
                                       "__any_sync", "__all_sync"};

static char text_buffer[1024];

// Nobody can run and not everybody has left: tell who waits where.
static void fail_stuck() {
  Thread* at_barrier = nullptr;
  Thread* at_warp = nullptr;
  for (u32 i = 0; i < thread_count; ++i) {
    if (threads[i].state == AT_BARRIER && !at_barrier) at_barrier = &threads[i];
    if (threads[i].state == AT_WARP && !at_warp) at_warp = &threads[i];
  }
  int n = snprintf(text_buffer, sizeof text_buffer, "the block is stuck:");
  if (at_barrier)
    n += snprintf(text_buffer + n, sizeof text_buffer - n,
                  " %u of %u threads wait at the barrier of line %d;", barrier.arrived,
                  thread_count, barrier.line);
  if (at_warp)
    n += snprintf(text_buffer + n, sizeof text_buffer - n,
                  " thread (%u,%u,%u) waits in %s of line %d for lanes 0x%08x of which 0x%08x came",
                  at_warp->index.x, at_warp->index.y, at_warp->index.z, op_names[at_warp->op],
                  at_warp->line, at_warp->mask, warps[at_warp->linear / 32].arrived & at_warp->mask);
  current = at_warp ? at_warp : at_barrier;
  fail(text_buffer);
}

// AddressSanitizer reports from inside the faulty access, where the fiber cannot be left.
static inline void leave_after_report() {
#if defined(__SANITIZE_ADDRESS__)
  if (failed) leave_kernel();
#endif
}

static void thread_exits() {
  leave_after_report();
  Thread* t = current;
  t->state = EXITED;
  ++exited_count;
  last_exited = t;
  Warp& w = warps[t->linear / 32];
  w.exited |= 1u << (t->linear % 32);
  if (barrier.arrived) {
    snprintf(text_buffer, sizeof text_buffer,
             "the thread left before a barrier: %u others wait at line %d, thread (%u,%u,%u) first",
             barrier.arrived, barrier.line, barrier.first->index.x, barrier.first->index.y,
             barrier.first->index.z);
    fail(text_buffer);
  }
}

static void on_signal(int number) {
  if (number == SIGVTALRM)
    snprintf(text_buffer, sizeof text_buffer, "the kernel did not end within %lld seconds",
             launch_info->seconds);
  else
    snprintf(text_buffer, sizeof text_buffer, "%s",
             number == SIGFPE ? "an integer was divided by zero"
                              : "an address outside of every array was used (segmentation fault)");
  fail(text_buffer);
}

// Leaving the handler through fail() is what makes an error of a crash, so the signals must stay
// unblocked.
struct SignalGuard {
  static constexpr int numbers[4] = {SIGSEGV, SIGBUS, SIGFPE, SIGVTALRM};
  struct sigaction old[4];
  stack_t old_stack;
  alignas(16) static inline char stack[64 * 1024];

  SignalGuard() {
    stack_t mine{};
    mine.ss_sp = stack;
    mine.ss_size = sizeof stack;
    sigaltstack(&mine, &old_stack);
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; ++i) sigaction(numbers[i], &action, &old[i]);
    set_timer(launch_info->seconds);
  }
  ~SignalGuard() {
    set_timer(0);
    for (int i = 0; i < 4; ++i) sigaction(numbers[i], &old[i], nullptr);
    sigaltstack(&old_stack, nullptr);
  }
  static void set_timer(long long seconds) {
    struct itimerval timer {};
    timer.it_value.tv_sec = seconds;
    setitimer(ITIMER_VIRTUAL, &timer, nullptr);
  }
};

// Names that -fsanitize=undefined calls. Having them here needs no runtime library and turns a finding
// into an ordinary error. Each record begins with the place in the source.
struct UbPlace {
  const char* file;
  u32 line, column;
};
[[noreturn]] static void undefined(const void* record_, const char* what) {
  const UbPlace* place = (const UbPlace*)record_;
  snprintf(text_buffer, sizeof text_buffer, "%s at %s:%u:%u", what,
           place->file ? place->file : "?", place->line, place->column);
  fail(text_buffer);
}

}  // namespace emu

#define EMU_UB(name, ...)                                                                        \
  extern "C" __attribute__((visibility("hidden"), used)) void __ubsan_handle_##name(__VA_ARGS__)
EMU_UB(type_mismatch_v1, void* r, void* p) {
  struct Mismatch {
    emu::UbPlace place;
    const void* type;
    unsigned char log_alignment, kind;
  };
  static char what[128];
  size_t alignment = (size_t)1 << ((Mismatch*)r)->log_alignment;
  if (!p)
    emu::undefined(r, "a null pointer is used");
  else if ((size_t)p & (alignment - 1))
    snprintf(what, sizeof what, "a misaligned address is used (%zu bytes off a multiple of %zu)",
             (size_t)p & (alignment - 1), alignment);
  else
    snprintf(what, sizeof what, "an access larger than its object");
  emu::undefined(r, what);
}
EMU_UB(out_of_bounds, void* r, void* i) {
  static char what[128];
  snprintf(what, sizeof what, "index %lld is outside of its array", (long long)(size_t)i);
  emu::undefined(r, what);
}
EMU_UB(shift_out_of_bounds, void* r, void*, void*) { emu::undefined(r, "shift by too much"); }
EMU_UB(add_overflow, void* r, void*, void*) { emu::undefined(r, "signed overflow in +"); }
EMU_UB(sub_overflow, void* r, void*, void*) { emu::undefined(r, "signed overflow in -"); }
EMU_UB(mul_overflow, void* r, void*, void*) { emu::undefined(r, "signed overflow in *"); }
EMU_UB(negate_overflow, void* r, void*) { emu::undefined(r, "signed overflow in negation"); }
EMU_UB(divrem_overflow, void* r, void*, void*) { emu::undefined(r, "division by zero or overflow"); }
EMU_UB(builtin_unreachable, void* r) { emu::undefined(r, "unreachable code was reached"); }
EMU_UB(missing_return, void* r) { emu::undefined(r, "a function ended without its return value"); }
EMU_UB(load_invalid_value, void* r, void*) { emu::undefined(r, "a bool holds neither 0 nor 1"); }
#undef EMU_UB
