// Runs the threads of one block as fibers, in turn, and sees to it that they meet as CUDA demands.
//
// A thread runs until it must wait for others; then the next lane of its warp runs, and when all
// lanes wait, what they wait for is looked at. Lanes that shuffle must stand at one line with one
// mask, and the mask must name these lanes and no other; all threads of a block must stand at the
// barrier of one line. Anything else is a fault: the launch ends and the fault says where.
//
// A thread that never waits costs a call and no switch: its fiber goes on with the next thread.
//
// This file is compiled without sanitizers. It tells them of its fibers: ASAN and TSAN are defined
// for the flavours "address" and "thread".

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda_on_cpu.h"
#include "switch.h"

#ifdef ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef TSAN
#include <sanitizer/tsan_interface.h>
constexpr bool OWN_FIBERS = true;  // of each thread of a launch, which tells the threads apart
#else
constexpr bool OWN_FIBERS = false;
#endif

ShimDim threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr int WARP = 32, MAX_THREADS = 1024;
constexpr int MAX_FIBERS = 8000;  // the thread sanitizer has no more; others need MAX_THREADS
constexpr size_t STACK = 256 << 10, GUARD = 4096;  // virtual; a page is used when it is touched
constexpr size_t SHARED_BYTES = 48 << 10;          // of a block, as CUDA allows without a request
constexpr size_t ARENA = 256 << 10, RED_ZONE = 64;

// ---- what is running ----------------------------------------------------------------------------

struct Fiber {
  Context context;
  char *stack = nullptr;
  size_t bytes = STACK;
  void *fake_stack = nullptr;  // of the address sanitizer
  void *tsan = nullptr;
};

struct Thread {
  Fiber *fiber;  // null until it begins
  const char *file;
  int line;
  ShimMeeting kind;
  unsigned mask;
  int source;
  uint64_t value, result;
};

// One bit for each lane, by its turn: bit i is the lane lane_of[i].
struct Warp {
  unsigned ready, meeting, at_barrier, done;
};

struct Fault {
  char message[256];
  char file[128];
  int line;
  long long block, thread;
};

Fiber host_fiber, *running = &host_fiber, *previous = nullptr;
Fiber fibers[MAX_FIBERS], *resting[MAX_FIBERS];  // no heap: a sanitizer watches who frees what
int fiber_count, resting_count;
Thread threads[MAX_THREADS], *current;
Warp warps[MAX_THREADS / WARP];
int warp_order[MAX_THREADS / WARP], lane_of[WARP], turn_of[WARP];
int warp_count, turn;  // turn: place in warp_order of the warp that runs

ShimBody body;
void *const *arguments;
Fault *fault;
uint64_t random_state, block_serial;

char *arena;
size_t arena_used, shared_used;

Thread &thread_at(int warp, int bit) { return threads[warp * WARP + bit]; }
int first_bit(unsigned bits) { return __builtin_ctz(bits); }

// ---- what the thread sanitizer must know --------------------------------------------------------

// A barrier orders memory for those who meet at it, once: each meeting has an address of its own.
// What a thread did is released at its end, and acquired only when all blocks are done: else they
// would seem to follow one another.
#ifdef TSAN
extern "C" void __tsan_acquire(void *);
extern "C" void __tsan_release(void *);
char block_begins, launch_ends, meetings[1 << 20];
size_t meeting_count;
void *new_meeting() { return &meetings[8 * (meeting_count++ % (sizeof meetings / 8))]; }
void acquire(void *at) { __tsan_acquire(at); }
void release(void *at) { __tsan_release(at); }
#else
char block_begins, launch_ends;
void *new_meeting() { return nullptr; }
void acquire(void *) {}
void release(void *) {}
#endif

// The fault that ends the launch; the first one counts.
template <typename... Values>
void fail(const char *file, int line, const char *format, Values... values) {
  if (fault->message[0]) return;
  snprintf(fault->message, sizeof fault->message, format, values...);
  snprintf(fault->file, sizeof fault->file, "%s", file);
  fault->line = line;
  fault->block = blockIdx.x;
  fault->thread = threadIdx.x;
  release(&launch_ends);
}

void *block_meeting, *warp_meeting[MAX_THREADS / WARP];

// ---- fibers -------------------------------------------------------------------------------------

void switch_to(Fiber &to) {
  Fiber &from = *running;
  previous = &from;
  running = &to;
#ifdef ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.bytes);
#endif
#ifdef TSAN
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(from.context, to.context);
}

// The other half of a switch, on the new stack. The first switch shows where the host's stack is.
void arrive(Fiber &self) {
#ifdef ASAN
  const void *stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(self.fake_stack, &stack, &bytes);
  previous->stack = (char *)stack;
  previous->bytes = bytes;
#endif
  (void)self;
}

void run_on(Fiber &to) {
  Fiber &self = *running;
  switch_to(to);
  arrive(self);
}

void work();

void make_fresh(Fiber &fiber) {
#ifdef ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.bytes);
#endif
#ifdef TSAN
  if (fiber.tsan) __tsan_destroy_fiber(fiber.tsan);
  fiber.tsan = __tsan_create_fiber(0);
#endif
  fiber.fake_stack = nullptr;
  make_context(fiber.context, fiber.stack, fiber.bytes, work);
}

char *fresh_pages(size_t bytes) {
  return (char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

Fiber *new_fiber() {
  Fiber *fiber = &fibers[fiber_count++];
  char *pages = fresh_pages(GUARD + STACK);
  if (pages == (char *)MAP_FAILED) abort();
  mprotect(pages, GUARD, PROT_NONE);
  fiber->stack = pages + GUARD;
  make_fresh(*fiber);
  return fiber;
}

Fiber *rested_fiber() { return resting_count ? resting[--resting_count] : new_fiber(); }

// A fiber that a fault stopped says what others say at their end.
void forget(Fiber &fiber) {
#ifdef TSAN
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
  release(&launch_ends);
  __tsan_switch_to_fiber(host_fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  make_fresh(fiber);
}

// All rest until the next launch; after a fault, what they were doing is forgotten.
void end_fibers(bool faulty) {
  if (!OWN_FIBERS && !faulty) return;
  for (resting_count = 0; resting_count < fiber_count; ++resting_count) {
    resting[resting_count] = &fibers[resting_count];
    if (faulty) forget(fibers[resting_count]);
  }
}

// ---- whose turn it is ---------------------------------------------------------------------------

const char *name_of(ShimMeeting kind) {
  static const char *const names[] = {"__syncthreads", "a shuffle", "__syncwarp"};
  return names[(int)kind];
}

void blame(const Thread &thread, int warp, int bit, const char *format, unsigned a, unsigned b) {
  threadIdx.x = warp * WARP + lane_of[bit];
  fail(thread.file, thread.line, format, name_of(thread.kind), a, b);
}

// Whether the lanes that meet stand at one line with one mask, which names them and no other.
bool agree(int warp, unsigned meeting, unsigned arrived) {
  const Thread &first = thread_at(warp, first_bit(meeting));
  for (unsigned rest = meeting; rest; rest &= rest - 1) {
    const int bit = first_bit(rest);
    const Thread &thread = thread_at(warp, bit);
    if (thread.line != first.line || thread.kind != first.kind || strcmp(thread.file, first.file)) {
      blame(thread, warp, bit, "%s is reached while other lanes of the warp are at line %u of it",
            first.line, 0);
      return false;
    }
    if (thread.mask != arrived) {
      blame(thread, warp, bit, "%s has the mask 0x%08x, and the lanes that arrive are 0x%08x",
            thread.mask, arrived);
      return false;
    }
    if (!(arrived >> (thread.source & 31) & 1)) {
      blame(thread, warp, bit, "%s reads lane %u, which is not in its mask 0x%08x", thread.source,
            thread.mask);
      return false;
    }
  }
  return true;
}

// All lanes of the warp wait: give those that meet what they came for.
bool meet(int warp) {
  Warp &state = warps[warp];
  unsigned arrived = 0;
  for (unsigned rest = state.meeting; rest; rest &= rest - 1) arrived |= 1u << lane_of[first_bit(rest)];
  if (!agree(warp, state.meeting, arrived)) return false;
  for (unsigned rest = state.meeting; rest; rest &= rest - 1) {
    Thread &thread = thread_at(warp, first_bit(rest));
    thread.result = thread_at(warp, turn_of[thread.source]).value;
  }
  state.ready = state.meeting;
  state.meeting = 0;
  warp_meeting[warp] = new_meeting();
  return true;
}

// All threads of the block wait or are done: they must all stand at one barrier.
bool pass_barrier() {
  const Thread *first = nullptr;
  for (int warp = 0; warp < warp_count; ++warp) {
    for (unsigned rest = warps[warp].at_barrier; rest; rest &= rest - 1) {
      const int bit = first_bit(rest);
      const Thread &thread = thread_at(warp, bit);
      if (!first) first = &thread;
      if (thread.line != first->line || strcmp(thread.file, first->file)) {
        blame(thread, warp, bit, "%s is reached while other threads wait at that of line %u",
              first->line, 0);
        return false;
      }
    }
  }
  for (int warp = 0; warp < warp_count; ++warp) {
    if (warps[warp].done) {
      threadIdx.x = warp * WARP + lane_of[first_bit(warps[warp].done)];
      fail(first->file, first->line, "thread %u returned and never reaches this __syncthreads",
           threadIdx.x);
      return false;
    }
    warps[warp].ready = warps[warp].at_barrier;
    warps[warp].at_barrier = 0;
  }
  block_meeting = new_meeting();
  turn = 0;
  return true;
}

bool block_is_done() {
  for (int warp = 0; warp < warp_count; ++warp) {
    if (warps[warp].at_barrier) return false;
  }
  return true;
}

// The thread that runs next; null at the end of the block, and after a fault.
Thread *next_thread() {
  for (;;) {
    const int warp = warp_order[turn];
    Warp &state = warps[warp];
    if (state.ready) {
      const int bit = first_bit(state.ready);
      state.ready &= state.ready - 1;
      threadIdx.x = warp * WARP + lane_of[bit];
      return current = &thread_at(warp, bit);
    }
    if (state.meeting) {
      if (!meet(warp)) return nullptr;
    } else if (++turn == warp_count) {
      turn = 0;
      if (block_is_done() || !pass_barrier()) return nullptr;
    }
  }
}

unsigned bit_of(const Thread *thread) { return 1u << ((thread - threads) % WARP); }
int warp_of(const Thread *thread) { return (thread - threads) / WARP; }

// Go on with another thread; this one's fiber keeps its place.
void wait() {
  Thread *next = next_thread();
  if (!next) {
    run_on(host_fiber);
  } else if (next->fiber != running) {
    if (!next->fiber) next->fiber = rested_fiber();
    run_on(*next->fiber);
  }
}

// The life of a fiber: one thread after another, and rest when none is new.
void work() {
  Fiber &self = *running;
  arrive(self);
  for (;;) {
    acquire(&block_begins);
    body(arguments);
    release(&launch_ends);
    warps[warp_of(current)].done |= bit_of(current);
    Thread *next = next_thread();
    if (next && !next->fiber) {
      next->fiber = &self;
    } else {
      if (!OWN_FIBERS) resting[resting_count++] = &self;
      run_on(next ? *next->fiber : host_fiber);
    }
  }
}

// ---- blocks -------------------------------------------------------------------------------------

// splitmix64
uint64_t random_bits() {
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// 0 .. n-1: in order for the seed 0, else shuffled.
template <typename Integer>
void put_in_order(Integer *order, size_t n, uint64_t seed) {
  for (size_t i = 0; i < n; ++i) order[i] = (Integer)i;
  for (size_t i = n; seed && i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
}

// Shared memory holds no zeros by luck: 0xFF is NaN as a float, -1 as an integer.
void begin_shared() {
  ++block_serial;
#ifdef TSAN  // pages that another block used would seem to be raced for
  if (arena) munmap(arena, ARENA);
  arena = nullptr;
#endif
  if (!arena) arena = fresh_pages(ARENA);
#ifdef ASAN
  __asan_poison_memory_region(arena, ARENA);
#endif
  arena_used = shared_used = 0;
}

void begin_block(int block, uint64_t seed) {
  begin_shared();
  put_in_order(warp_order, warp_count, seed);
  put_in_order(lane_of, WARP, seed);
  for (int bit = 0; bit < WARP; ++bit) turn_of[lane_of[bit]] = bit;
  for (int warp = 0; warp < warp_count; ++warp) {
    warps[warp] = {};
    warp_meeting[warp] = new_meeting();
    for (int bit = 0; bit < WARP; ++bit) {
      thread_at(warp, bit).fiber = nullptr;
      if (warp * WARP + lane_of[bit] >= block) continue;
      warps[warp].ready |= 1u << bit;
      // From here: a thread that began another would seem to come before all that it does.
      if (OWN_FIBERS) thread_at(warp, bit).fiber = rested_fiber();
    }
  }
  block_meeting = new_meeting();
  turn = 0;
}

void run_block(int block, uint64_t seed) {
  begin_block(block, seed);
  release(&block_begins);
  Thread *first = next_thread();
  if (!first->fiber) first->fiber = rested_fiber();
  run_on(*first->fiber);
}

}  // namespace

// ---- what the kernel text calls -----------------------------------------------------------------

void *shim_shared(ShimShared &shared, size_t bytes, size_t alignment, const char *file, int line) {
  if (shared.block == block_serial) return shared.address;
  shared_used += bytes;
  if (shared_used > SHARED_BYTES) {
    fail(file, line, "the block's shared memory exceeds %zu bytes", SHARED_BYTES);
    run_on(host_fiber);
  }
  const size_t unit = alignment < 8 ? 8 : alignment;
  const size_t at = (arena_used + unit - 1) / unit * unit;
  arena_used = at + bytes + RED_ZONE;
  shared = {block_serial, arena + at};
#ifdef ASAN
  __asan_unpoison_memory_region(shared.address, bytes);
#endif
  volatile char *byte = arena + at;  // memset would be a race in the eyes of the thread sanitizer
  for (size_t i = 0; i < bytes; ++i) byte[i] = (char)0xFF;
  return shared.address;
}

void shim_barrier(const char *file, int line) {
  Thread &self = *current;
  self.kind = ShimMeeting::BARRIER;
  self.file = file;
  self.line = line;
  warps[warp_of(&self)].at_barrier |= bit_of(&self);
  void *meeting = block_meeting;  // the next one has another
  release(meeting);
  wait();
  acquire(meeting);
}

uint64_t shim_meet(ShimMeeting kind, unsigned mask, uint64_t value, int source, const char *file,
                   int line) {
  Thread &self = *current;
  const int warp = warp_of(&self);
  self.kind = kind;
  self.file = file;
  self.line = line;
  self.mask = mask;
  self.value = value;
  self.source = source & 31;
  warps[warp].meeting |= bit_of(&self);
  void *meeting = warp_meeting[warp];
  const bool orders_memory = kind == ShimMeeting::SYNCWARP;  // a shuffle does not
  if (orders_memory) release(meeting);
  wait();
  if (orders_memory) acquire(meeting);
  return self.result;
}

// ---- what the checks of -fsanitize=alignment,null,bounds call -----------------------------------

#ifdef CHECKS
struct Place {
  const char *file;
  unsigned line, column;
};

extern "C" void __ubsan_handle_type_mismatch_v1_abort(Place *place, uintptr_t address) {
  const char *what = address ? "the address 0x%zx is not aligned for its type"
                             : "a null pointer is used (0x%zx)";
  fail(place->file, place->line, what, (size_t)address);
  run_on(host_fiber);
}

extern "C" void __ubsan_handle_out_of_bounds_abort(Place *place, uintptr_t index) {
  fail(place->file, place->line, "the index %zd is outside of its array", (ssize_t)index);
  run_on(host_fiber);
}
#endif

// ---- what the runner calls ----------------------------------------------------------------------

// Run a kernel to its end, or to the first fault: 0, or 1 with the fault described in `report`.
extern "C" SHIM_EXPORT int shim_launch(ShimBody kernel, void *const *values, unsigned grid,
                                       unsigned block, uint64_t seed, Fault *report) {
  body = kernel;
  arguments = values;
  fault = report;
  *report = {};
  gridDim = {grid, 1, 1};
  blockDim = {block, 1, 1};
  random_state = seed;
  warp_count = (block + WARP - 1) / WARP;
  std::vector<unsigned> order(seed ? grid : 0);
  put_in_order(order.data(), order.size(), seed);
#ifdef TSAN
  host_fiber.tsan = __tsan_get_current_fiber();
#endif
  for (unsigned i = 0; i < grid && !fault->message[0]; ++i) {
    blockIdx.x = seed ? order[i] : i;
    run_block(block, seed);
  }
  end_fibers(fault->message[0]);
  acquire(&launch_ends);
  return fault->message[0] != 0;
}
