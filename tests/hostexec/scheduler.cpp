// Compiled without sanitizers, since it switches their stacks; it tells them about each switch.

#include "tests/hostexec/scheduler.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>

#include "engine/core/random.h"
#include "tests/hostexec/fake_runtime.h"

#ifdef HOSTEXEC_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef HOSTEXEC_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

namespace nibblenet::hostexec {

ThreadState state;

namespace {

namespace context = boost::context::detail;

constexpr unsigned warp_size = 32;
// Sanitizers make frames several times as large.
#if defined(HOSTEXEC_ASAN) || defined(HOSTEXEC_TSAN)
constexpr size_t stack_bytes = 256 << 10;
#else
constexpr size_t stack_bytes = 64 << 10;
#endif

Schedule current_schedule;
bool dry_mode = false;
std::vector<Launch> launches;

/// Happens-before edges of ThreadSanitizer, at an address of our choice.
void order_before([[maybe_unused]] void* point) {
#ifdef HOSTEXEC_TSAN
  __tsan_release(point);
#endif
}
void order_after([[maybe_unused]] void* point) {
#ifdef HOSTEXEC_TSAN
  __tsan_acquire(point);
#endif
}

/// Where a fiber stands.
enum class Wait : uint8_t { nothing, block, warp };

/// A stack with a guard page below it, on which one CUDA thread after the other runs.
struct Fiber {
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  char* memory = nullptr;  ///< guard page and stack
  context::fcontext_t resume_point = nullptr;
  void* fake_stack = nullptr;  ///< AddressSanitizer's, while suspended
  void* tsan_fiber = nullptr;

  // Of the CUDA thread that runs on it
  unsigned thread = 0;
  bool finished = true;
  Wait wait = Wait::nothing;
  std::source_location where;
  const char* what = "";
  unsigned mask = 0;
  void* slot = nullptr;
  CopyGroups copies;
  std::exception_ptr error;
};

struct Block {
  std::vector<Fiber*> fibers;
  unsigned at_barrier = 0;
  /// Shared objects by key; an array, since ThreadSanitizer would take allocations for writes of
  /// whoever asks first.
  std::array<std::pair<const void*, void*>, 32> shared{};
  size_t shared_count = 0;
  size_t shared_bytes = 0;  ///< of all of them
  // Addresses for order_before and order_after. On the heap: on the stack they would be those of
  // the block before, and order this block behind it. Two, which barriers use in turn: a thread
  // that leaves a barrier late must not be ordered behind those that are at the next one already.
  std::vector<char> barrier_points = std::vector<char>(2);
  size_t barrier_turn = 0;
  std::vector<char> warp_posted;  // one a warp
  std::vector<char> warp_combined;
};

struct Scheduler {
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  Block* block = nullptr;
  Fiber* running = nullptr;
  bool abandoning = false;
  context::fcontext_t main = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_size = 0;
  void* main_tsan_fiber = nullptr;
  char launched = 0;  // addresses for order_before and order_after
  char done = 0;
  /// Two pools in turn: under ThreadSanitizer nothing orders the threads of neighbouring blocks.
  std::vector<std::unique_ptr<Fiber>> pools[2];
  std::vector<void*> garbage;  ///< shared memory of finished blocks
} scheduler;

void enter_main() {
  [[maybe_unused]] Fiber& self = *scheduler.running;
#ifdef HOSTEXEC_ASAN
  __sanitizer_start_switch_fiber(&self.fake_stack, scheduler.main_stack, scheduler.main_stack_size);
#endif
#ifdef HOSTEXEC_TSAN
  __tsan_switch_to_fiber(scheduler.main_tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  const context::transfer_t from = context::jump_fcontext(scheduler.main, nullptr);
  scheduler.main = from.fctx;
#ifdef HOSTEXEC_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack, &scheduler.main_stack, &scheduler.main_stack_size);
#endif
}

/// Unwinds the other threads after an error in one.
struct Abandoned {};

/// Lets others run until a barrier or collective is complete.
void suspend() {
  enter_main();
  if (scheduler.abandoning) throw Abandoned();
}

std::string line_of(const std::source_location& where) { return fmt::format("{}:{}", where.file_name(), where.line()); }

void run_thread() {
  Fiber& self = *scheduler.running;
  order_after(&scheduler.launched);
  if (scheduler.abandoning) return;
  (*scheduler.body)();
  if (!self.copies.open.empty() || !self.copies.closed.empty())
    fail<HostExecutionError>("{}: thread {} of block ({}, {}, {}) ended with copies nobody waited for",
                             scheduler.kernel, self.thread, state.block_index.x, state.block_index.y,
                             state.block_index.z);
}

/// Runs thread after thread, for as long as the fiber lives.
void fiber_main(context::transfer_t from) {
  scheduler.main = from.fctx;
#ifdef HOSTEXEC_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.main_stack, &scheduler.main_stack_size);
#endif
  for (;;) {
    Fiber& self = *scheduler.running;
    try {
      run_thread();
    } catch (const Abandoned&) {
      self.copies = {};
    } catch (...) {
      self.error = std::current_exception();
      self.copies = {};
    }
    self.finished = true;
    order_before(&scheduler.done);
    enter_main();
  }
}

Fiber::Fiber() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* mapped = mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapped, page, PROT_NONE);
  memory = static_cast<char*>(mapped);
  resume_point = context::make_fcontext(memory + page + stack_bytes, stack_bytes, fiber_main);
#ifdef HOSTEXEC_TSAN
  tsan_fiber = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
#ifdef HOSTEXEC_ASAN
  __asan_unpoison_memory_region(memory + page, stack_bytes);
#endif
#ifdef HOSTEXEC_TSAN
  __tsan_destroy_fiber(tsan_fiber);
#endif
  munmap(memory, page + stack_bytes);
}

void resume(Fiber& fiber) {
  scheduler.running = &fiber;
  state.thread_index = {fiber.thread, 0, 0};
  state.copies = &fiber.copies;
#ifdef HOSTEXEC_ASAN
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  __sanitizer_start_switch_fiber(&scheduler.main_fake_stack, fiber.memory + page, stack_bytes);
#endif
#ifdef HOSTEXEC_TSAN
  __tsan_switch_to_fiber(fiber.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  const context::transfer_t from = context::jump_fcontext(fiber.resume_point, nullptr);
  fiber.resume_point = from.fctx;
#ifdef HOSTEXEC_ASAN
  __sanitizer_finish_switch_fiber(scheduler.main_fake_stack, nullptr, nullptr);
#endif
  scheduler.running = nullptr;
}

std::string describe(const Fiber& fiber) {
  if (fiber.finished) return fmt::format("thread {} has ended", fiber.thread);
  if (fiber.wait == Wait::nothing) return fmt::format("thread {} runs", fiber.thread);
  return fmt::format("thread {} waits at {} in {}", fiber.thread, fiber.what, line_of(fiber.where));
}

std::string place() {
  return fmt::format("{}, block ({}, {}, {})", scheduler.kernel, state.block_index.x, state.block_index.y,
                     state.block_index.z);
}

/// Nobody can run: names one that waits, and one that keeps it waiting.
[[noreturn]] void fail_stuck(const Block& block) {
  const auto waiting = std::ranges::find_if(block.fibers, [](const Fiber* f) { return !f->finished; });
  const Fiber& first = **waiting;
  const auto absent = std::ranges::find_if(block.fibers, [&](const Fiber* other) {
    if (other == &first) return false;
    if (first.wait == Wait::block) return other->wait != Wait::block;
    const bool named =
        other->thread / warp_size == first.thread / warp_size && (first.mask >> (other->thread % warp_size) & 1U) != 0;
    return named && (other->wait != Wait::warp || other->mask != first.mask);
  });
  fail<HostExecutionError>("{}: {} for ever: {}", place(), describe(first),
                           absent == block.fibers.end() ? "nobody is left to come" : describe(**absent));
}

template <class Item>
void arrange(std::vector<Item>& items, uint64_t stream) {
  if (current_schedule.order == Schedule::Order::reverse) std::ranges::reverse(items);
  if (current_schedule.order != Schedule::Order::random) return;
  Random random(current_schedule.seed, stream);
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(i)]);
}

void release_shared_memory() {
  for (void* object : scheduler.garbage) std::free(object);
  scheduler.garbage.clear();
}

void run_block(std::vector<std::unique_ptr<Fiber>>& pool, unsigned threads) {
  Block block;
  block.warp_posted.resize((threads + warp_size - 1) / warp_size);
  block.warp_combined.resize(block.warp_posted.size());
  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber& fiber = *pool[thread];
    fiber.thread = thread;
    fiber.finished = false;
    fiber.wait = Wait::nothing;
    block.fibers.push_back(&fiber);
  }
  scheduler.block = &block;
  const auto leave = [&] {
    for (size_t i = 0; i < block.shared_count; ++i) scheduler.garbage.push_back(block.shared[i].second);
#ifndef HOSTEXEC_TSAN  // freeing is writing, and nothing has ordered us behind this block's threads yet
    release_shared_memory();
#endif
    scheduler.block = nullptr;
  };
  try {
    std::vector<Fiber*> ready;
    for (uint64_t round = 0;; ++round) {
      ready.clear();
      std::ranges::copy_if(block.fibers, std::back_inserter(ready),
                           [](const Fiber* f) { return !f->finished && f->wait == Wait::nothing; });
      if (ready.empty()) {
        if (std::ranges::all_of(block.fibers, &Fiber::finished)) break;
        fail_stuck(block);
      }
      arrange(ready, round);
      for (Fiber* fiber : ready) {
        resume(*fiber);
        if (fiber->error) std::rethrow_exception(std::exchange(fiber->error, nullptr));
      }
    }
  } catch (...) {
    scheduler.abandoning = true;
    for (Fiber* fiber : block.fibers)
      if (!fiber->finished) resume(*fiber);
    scheduler.abandoning = false;
    order_after(&scheduler.done);
    leave();
    throw;
  }
  leave();
}

void run(const char* name, dim3 blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body) {
  if (scheduler.running != nullptr) throw HostExecutionError("a kernel cannot launch a kernel here");
  finish_uploads();
  if (threads == 0 || threads > 1024) fail<HostExecutionError>("{}: {} threads in a block", name, threads);
  scheduler.kernel = name;
  scheduler.body = &body;
  state.block_dimensions = dim3(threads);
  state.grid_dimensions = blocks;
  state.shared_bytes = shared_bytes;
#ifdef HOSTEXEC_TSAN
  scheduler.main_tsan_fiber = __tsan_get_current_fiber();
#endif
  for (auto& pool : scheduler.pools)
    while (pool.size() < threads) pool.push_back(std::make_unique<Fiber>());
  order_before(&scheduler.launched);

  std::vector<uint64_t> order(size_t{blocks.x} * blocks.y * blocks.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  arrange(order, ~uint64_t{0});
  try {
    size_t turn = 0;
    for (const uint64_t index : order) {
      state.block_index = {static_cast<unsigned>(index % blocks.x), static_cast<unsigned>(index / blocks.x % blocks.y),
                           static_cast<unsigned>(index / blocks.x / blocks.y)};
      run_block(scheduler.pools[turn++ % 2], threads);
    }
  } catch (...) {
    order_after(&scheduler.done);
    release_shared_memory();
    throw;
  }
  order_after(&scheduler.done);
  release_shared_memory();
}

}  // namespace

void set_dry(bool dry) {
  dry_mode = dry;
  launches.clear();
}
bool dry() { return dry_mode; }
std::vector<Launch> take_launches() { return std::exchange(launches, {}); }

void set_schedule(const Schedule& schedule) { current_schedule = schedule; }
const Schedule& schedule() { return current_schedule; }

void run_grid(const char* name, dim3 blocks, unsigned threads, std::function<void()> thread_body, size_t shared_bytes) {
  if (dry_mode) {
    launches.push_back({name, blocks, threads, shared_bytes});
  } else if (capturing()) {
    record([=, body = std::move(thread_body)] { run(name, blocks, threads, shared_bytes, body); });
  } else {
    run(name, blocks, threads, shared_bytes, thread_body);
  }
}

void* shared_object(const void* key, size_t size) {
  Block& block = *scheduler.block;
  for (size_t i = 0; i < block.shared_count; ++i)
    if (block.shared[i].first == key) return block.shared[i].second;
  if (block.shared_count == block.shared.size()) throw HostExecutionError("too many shared objects in one block");
  block.shared_bytes += (size + 15) / 16 * 16;
  if (block.shared_bytes > block_shared_limit())
    fail<HostExecutionError>("{}: {} bytes of shared memory, and a block has {}", place(), block.shared_bytes,
                             block_shared_limit());
  void* object = nullptr;
#ifdef HOSTEXEC_TSAN  // it is nobody's write
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  if (posix_memalign(&object, 16, size) != 0) throw std::bad_alloc();
  std::memset(object, 0xFF, size);
#ifdef HOSTEXEC_TSAN
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  block.shared[block.shared_count++] = {key, object};
  return object;
}

void block_barrier(std::source_location where) {
  Fiber& self = *scheduler.running;
  Block& block = *scheduler.block;
  self.wait = Wait::block;
  self.what = "__syncthreads";
  self.where = where;
  for (const Fiber* other : block.fibers)
    if (other->wait == Wait::block && other->where.line() != where.line())
      fail<HostExecutionError>("{}: divergent barrier: {}, {}", place(), describe(*other), describe(self));
  char* point = &block.barrier_points[block.barrier_turn];
  order_before(point);
  if (++block.at_barrier == block.fibers.size()) {
    block.at_barrier = 0;
    block.barrier_turn ^= 1;
    for (Fiber* fiber : block.fibers) fiber->wait = Wait::nothing;
  } else {
    suspend();
  }
  order_after(point);
}

void warp_collective(unsigned mask, const char* what, std::source_location where, void* slot, Combine combine) {
  Fiber& self = *scheduler.running;
  Block& block = *scheduler.block;
  const unsigned warp = self.thread / warp_size;
  self.wait = Wait::warp;
  self.what = what;
  self.where = where;
  self.mask = mask;
  self.slot = slot;
  if ((mask >> (self.thread % warp_size) & 1U) == 0)
    fail<HostExecutionError>("{}: thread {} calls {} in {} with mask {:#x}, which does not name it", place(),
                             self.thread, what, line_of(where), mask);
  bool complete = true;
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    if ((mask >> lane & 1U) == 0) continue;
    const unsigned thread = warp * warp_size + lane;
    if (thread >= block.fibers.size())
      fail<HostExecutionError>("{}: {} with mask {:#x}, which names thread {} of a block of {}", place(),
                               describe(self), mask, thread, block.fibers.size());
    const Fiber& other = *block.fibers[thread];
    if (other.finished)
      fail<HostExecutionError>("{}: {} with mask {:#x}, but {}", place(), describe(self), mask, describe(other));
    if (other.wait != Wait::warp) {
      complete = false;
    } else if (other.mask != mask || other.where.line() != where.line() || std::strcmp(other.what, what) != 0) {
      fail<HostExecutionError>("{}: lanes of one mask at different places: {} (mask {:#x}), {} (mask {:#x})", place(),
                               describe(other), other.mask, describe(self), mask);
    }
  }
  order_before(&block.warp_posted[warp]);
  if (complete) {
    order_after(&block.warp_posted[warp]);
    void* slots[warp_size] = {};
    for (unsigned lane = 0; lane < warp_size; ++lane)
      if ((mask >> lane & 1U) != 0) slots[lane] = block.fibers[warp * warp_size + lane]->slot;
    if (combine != nullptr) combine(slots, mask);
    order_before(&block.warp_combined[warp]);
    for (unsigned lane = 0; lane < warp_size; ++lane)
      if ((mask >> lane & 1U) != 0) block.fibers[warp * warp_size + lane]->wait = Wait::nothing;
  } else {
    suspend();
  }
  order_after(&block.warp_combined[warp]);
}

void fail_here(const std::string& what, std::source_location where) {
  fail<HostExecutionError>("{}, thread {}: {} in {}", place(), scheduler.running->thread, what, line_of(where));
}

}  // namespace nibblenet::hostexec
