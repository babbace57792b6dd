// Fibers for CUDA threads, and the scheduler that picks which thread of a block runs next.
#pragma once

namespace emu {

constexpr int max_threads = 1024;
constexpr u32 max_shared = 227 * 1024;
constexpr u32 red_zone = 1024;
constexpr u64 stack_canary = 0x5afec0de5afec0deULL;

alignas(1024) static unsigned char shared_memory[red_zone + max_shared + red_zone];
static unsigned char* const dynamic_shared = shared_memory + red_zone;

struct Context {
#ifdef EMU_UCONTEXT
  ucontext_t state;
#else
  void* sp;
#endif
  const char* stack;
  size_t stack_bytes;
};

struct Worker {
  Context context;
  Worker* next_free;
};

enum State : unsigned char { NEW, READY, AT_BARRIER, AT_WARP, EXITED };

struct Thread {
  Worker* worker;  // whose stack it is suspended on; null while NEW
  uint3 index;
  u32 linear;
  State state;
  unsigned char op;  // the rest describes the collective it waits in
  int line;
  u32 mask;
  int lane, width;
  u64 value, result;
};

struct Warp {
  u32 arrived, exited;
};

static EmuLaunch* launch_info;
static void (*kernel_call)(void*);
static void* kernel_args;

static Context main_context;
static Worker workers[max_threads];
static Worker* free_workers;
static u32 workers_made;
static Thread threads[max_threads];
static Warp warps[max_threads / 32];
static Thread* ready[max_threads];
static u32 ready_count, thread_count, exited_count;
static Thread* current;
static Thread* last_exited;
static u64 random_state;

static struct {
  u32 arrived;
  int line, kind;
  int sum, any, all;
  int result;
  Thread* first;
} barrier;

static inline u32 random_below(u32 n) {
  random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
  return (u32)(((random_state >> 32) * n) >> 32);
}

[[noreturn]] static void fail(const char* text);
static void worker_main();

#ifdef EMU_UCONTEXT
static inline void context_switch_raw(Context& from, Context& to) {
  swapcontext(&from.state, &to.state);
}
static void context_make(Context& c) {
  getcontext(&c.state);
  c.state.uc_stack.ss_sp = (void*)c.stack;
  c.state.uc_stack.ss_size = c.stack_bytes;
  c.state.uc_link = nullptr;
  makecontext(&c.state, worker_main, 0);
}
#else
// Saves the callee-saved registers of the System V ABI on the old stack and loads them from the new.
asm(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch,@function
.p2align 4
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");
extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** save, void* load);
static inline void context_switch_raw(Context& from, Context& to) { emu_switch(&from.sp, to.sp); }
static void context_make(Context& c) {
  void** top = (void**)(((size_t)(c.stack + c.stack_bytes)) & ~(size_t)15);
  *--top = nullptr;  // the return address of worker_main, which never returns
  *--top = (void*)worker_main;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  c.sp = top;
}
#endif

static inline void context_switch(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to.stack, to.stack_bytes);
  context_switch_raw(from, to);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  context_switch_raw(from, to);
#endif
}

static EMU_NO_ASAN Worker* take_worker() {
  if (Worker* w = free_workers) {
    free_workers = w->next_free;
    return w;
  }
  u32 i = workers_made++;
  Worker* w = &workers[i];
  char* stack = launch_info->stacks + i * launch_info->stack_bytes;
  *(u64*)stack = stack_canary;
  // Stacks that begin at the same offset would all compete for the same few cache sets.
  w->context.stack = stack;
  w->context.stack_bytes = launch_info->stack_bytes - (i * 7 % 61) * 64;
  context_make(w->context);
  return w;
}

static inline void check_canary(Worker* w) {
  if (*(const volatile u64*)w->context.stack != stack_canary) fail("the emulated stack overflowed");
}

// In a fair order a warp hardly ever gets far ahead of another one, as warps of a GPU may. So there
// is always one that runs only when hardly any other can; every barrier chooses it anew.
static u32 starved;

static inline void choose_starved() {
  starved = random_below(2) ? 0 : random_below((thread_count + 31) / 32);
}

static inline Thread* pick() {
  u32 i = random_below(ready_count);
  for (int again = 0; again < 16 && ready[i]->linear / 32 == starved; ++again) {
    i = random_below(ready_count);
  }
  Thread* t = ready[i];
  ready[i] = ready[--ready_count];
  return t;
}

static inline void enter(Thread* t) {
  current = t;
  threadIdx = t->index;
}

[[noreturn]] static void fail_stuck();

// The current thread waits for something: run others until somebody makes it ready again.
static inline void suspend() {
  if (ready_count == 0) fail_stuck();
  Worker* mine = current->worker;
  check_canary(mine);
  Thread* t = pick();
  if (!t->worker) t->worker = take_worker();
  enter(t);
  context_switch(mine->context, t->worker->context);
}

static inline void wake(Thread* t) {
  t->state = READY;
  ready[ready_count++] = t;
}

static void thread_exits();

// A worker runs threads one after another on its stack; only a thread that waits keeps the stack.
static void worker_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (;;) {
    kernel_call(kernel_args);
    Worker* mine = current->worker;
    check_canary(mine);
    thread_exits();
    if (ready_count) {
      Thread* t = pick();
      bool fresh = !t->worker;
      if (fresh) t->worker = mine;
      enter(t);
      if (fresh) continue;
      mine->next_free = free_workers;
      free_workers = mine;
      context_switch(mine->context, t->worker->context);
    } else {
      if (exited_count != thread_count) fail_stuck();
      mine->next_free = free_workers;
      free_workers = mine;
      context_switch(mine->context, main_context);
    }
  }
}

}  // namespace emu
