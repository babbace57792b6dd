// Block barriers and warp collectives: where threads wait for each other, and the rules for it.
#pragma once

namespace emu {

enum BarrierKind { SYNC, COUNT, AND, OR };

static int block_barrier(int kind, int predicate, int line) {
  Thread* me = current;
  leave_after_report();
  if (exited_count) {
    current = last_exited;
    snprintf(text_buffer, sizeof text_buffer,
             "the thread left before a barrier: thread (%u,%u,%u) waits at line %d", me->index.x,
             me->index.y, me->index.z, line);
    fail(text_buffer);
  }
  if (barrier.arrived == 0) {
    barrier.line = line;
    barrier.kind = kind;
    barrier.sum = barrier.any = 0;
    barrier.all = 1;
    barrier.first = me;
  } else if (barrier.line != line || barrier.kind != kind) {
    snprintf(text_buffer, sizeof text_buffer,
             "different barriers meet: this thread is at line %d, thread (%u,%u,%u) at line %d",
             line, barrier.first->index.x, barrier.first->index.y, barrier.first->index.z,
             barrier.line);
    fail(text_buffer);
  }
  barrier.sum += predicate != 0;
  barrier.any |= predicate != 0;
  barrier.all &= predicate != 0;
  if (++barrier.arrived < thread_count) {
    me->state = AT_BARRIER;
    suspend();
  } else {
    barrier.arrived = 0;
    barrier.result = kind == COUNT ? barrier.sum : kind == AND ? barrier.all : barrier.any;
    // The last to arrive goes back among the others, so that it does not always run first.
    for (u32 i = 0; i < thread_count; ++i) wake(&threads[i]);
    choose_starved();
    Thread* t = pick();
    if (t != me) {
      check_canary(me->worker);
      enter(t);
      context_switch(me->worker->context, t->worker->context);
    }
  }
  me->state = READY;
  return barrier.result;
}

enum Op : unsigned char { SYNCWARP, SHFL, SHFL_UP, SHFL_DOWN, SHFL_XOR, BALLOT, ANY, ALL };

static u64 shuffled(Thread* base, int lane) {
  Thread& t = base[lane];
  int start = lane & ~(t.width - 1), end = start + t.width, source = lane;
  if (t.op == SHFL) source = start + (t.lane & (t.width - 1));
  if (t.op == SHFL_UP) source = lane - t.lane < start ? lane : lane - t.lane;
  if (t.op == SHFL_DOWN) source = lane + t.lane >= end ? lane : lane + t.lane;
  if (t.op == SHFL_XOR) source = (lane ^ t.lane) >= end ? lane : lane ^ t.lane;
  if (!(t.mask >> source & 1)) {
    current = &t;
    snprintf(text_buffer, sizeof text_buffer, "%s of line %d reads lane %d, not in its mask 0x%08x",
             op_names[t.op], t.line, source, t.mask);
    fail(text_buffer);
  }
  return base[source].value;
}

static u64 warp_collective(Op op, u32 mask, u64 value, int lane_argument, int width, int line) {
  Thread* me = current;
  leave_after_report();
  u32 my_lane = me->linear % 32, number = me->linear / 32;
  Thread* base = &threads[number * 32];
  Warp& warp = warps[number];
  u32 lanes = thread_count - number * 32;
  u32 existing = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
  const char* wrong = nullptr;
  if (!(mask >> my_lane & 1)) wrong = "does not name the calling lane";
  if (mask & ~existing) wrong = "names lanes that the block does not have";
  if (mask & warp.exited) wrong = "names lanes that have left the kernel";
  if (width < 1 || width > 32 || (width & (width - 1))) wrong = "comes with a width that is no power of two up to 32";
  if (wrong) {
    snprintf(text_buffer, sizeof text_buffer, "the mask 0x%08x of %s in line %d %s", mask,
             op_names[op], line, wrong);
    fail(text_buffer);
  }
  me->op = op;
  me->line = line;
  me->mask = mask;
  me->lane = lane_argument;
  me->width = width;
  me->value = value;
  warp.arrived |= 1u << my_lane;
  if ((warp.arrived & mask) != mask) {
    me->state = AT_WARP;
    suspend();
    return me->result;
  }
  u32 votes = 0;
  for (u32 i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread& t = base[i];
    if (t.mask != mask || t.op != op || t.line != line) {
      snprintf(text_buffer, sizeof text_buffer,
               "lanes disagree: this one is in %s(0x%08x) of line %d, thread (%u,%u,%u) in "
               "%s(0x%08x) of line %d",
               op_names[op], mask, line, t.index.x, t.index.y, t.index.z, op_names[t.op], t.mask,
               t.line);
      fail(text_buffer);
    }
    votes |= (u32)(t.value != 0) << i;
  }
  for (u32 i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread& t = base[i];
    if (op >= SHFL && op <= SHFL_XOR) t.result = shuffled(base, (int)i);
    if (op == BALLOT) t.result = votes;
    if (op == ANY) t.result = votes != 0;
    if (op == ALL) t.result = votes == mask;
  }
  warp.arrived &= ~mask;
  for (u32 i = 0; i < 32; ++i)
    if (mask >> i & 1) wake(&base[i]);
  Thread* t = pick();
  if (t != me) {
    if (!t->worker) t->worker = take_worker();
    check_canary(me->worker);
    enter(t);
    context_switch(me->worker->context, t->worker->context);
  }
  return me->result;
}

template <class T>
static T shuffle(Op op, u32 mask, T value, int lane, int width, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  u64 bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(op, mask, bits, lane, width, line);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
// The width may be left out, which macros cannot express directly.
template <class T, class L>
static T shuffle_at(int line, Op op, u32 mask, T value, L lane, int width = 32) {
  return shuffle<T>(op, mask, value, (int)lane, width, line);
}
static inline void syncwarp_at(int line, u32 mask = 0xffffffffu) {
  warp_collective(SYNCWARP, mask, 0, 0, 32, line);
}

}  // namespace emu

#define __syncthreads() ((void)emu::block_barrier(emu::SYNC, 0, __LINE__))
#define __syncthreads_count(p) emu::block_barrier(emu::COUNT, (p) != 0, __LINE__)
#define __syncthreads_and(p) emu::block_barrier(emu::AND, (p) != 0, __LINE__)
#define __syncthreads_or(p) emu::block_barrier(emu::OR, (p) != 0, __LINE__)
#define __syncwarp(...) emu::syncwarp_at(__LINE__ __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) emu::shuffle_at(__LINE__, emu::SHFL, __VA_ARGS__)
#define __shfl_up_sync(...) emu::shuffle_at(__LINE__, emu::SHFL_UP, __VA_ARGS__)
#define __shfl_down_sync(...) emu::shuffle_at(__LINE__, emu::SHFL_DOWN, __VA_ARGS__)
#define __shfl_xor_sync(...) emu::shuffle_at(__LINE__, emu::SHFL_XOR, __VA_ARGS__)
#define __ballot_sync(m, p) \
  ((unsigned)emu::warp_collective(emu::BALLOT, (m), (p) != 0, 0, 32, __LINE__))
#define __any_sync(m, p) ((int)emu::warp_collective(emu::ANY, (m), (p) != 0, 0, 32, __LINE__))
#define __all_sync(m, p) ((int)emu::warp_collective(emu::ALL, (m), (p) != 0, 0, 32, __LINE__))
// Which lanes run together is the hardware's choice; "this one alone" is always a correct answer and
// shows code that counts on more.
static inline unsigned __activemask() { return 1u << (emu::current->linear % 32); }
