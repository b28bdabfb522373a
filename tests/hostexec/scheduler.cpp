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
enum class Wait : uint8_t { nothing, block, warp, cluster };

struct Block;

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
  Block* block = nullptr;
  unsigned thread = 0;
  bool finished = true;
  Wait wait = Wait::nothing;
  std::source_location where;
  const char* what = "";
  unsigned mask = 0;
  void* slot = nullptr;
  bool arrived = false;  ///< at the cluster's barrier, and has not waited there yet
  size_t turn = 0;       ///< of the cluster's barrier when it arrived
  CopyGroups copies;
  std::exception_ptr error;
};

struct SharedObject {
  const void* key;
  void* memory;
  size_t size;
};

struct Block {
  uint3 index{};
  std::vector<Fiber*> fibers;
  unsigned at_barrier = 0;
  /// Shared objects; an array, since ThreadSanitizer would take allocations for writes of whoever
  /// asks first.
  std::array<SharedObject, 32> shared{};
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

/// Blocks that run at once.
struct Cluster {
  std::vector<Block> blocks;
  size_t at_barrier = 0;
  std::vector<char> barrier_points = std::vector<char>(2);  ///< as a block's
  size_t barrier_turn = 0;
};

struct Scheduler {
  const char* kernel = "";
  const std::function<void()>* body = nullptr;
  Cluster* cluster = nullptr;
  Fiber* running = nullptr;
  bool abandoning = false;
  context::fcontext_t main = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_size = 0;
  void* main_tsan_fiber = nullptr;
  char launched = 0;  // addresses for order_before and order_after
  char done = 0;
  /// Two pools in turn: under ThreadSanitizer nothing orders the threads of neighbouring clusters.
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
  if (self.arrived)
    fail<HostExecutionError>("{}: thread {} of block ({}, {}, {}) ended between cluster_arrive and cluster_wait",
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
  state.block_index = fiber.block->index;
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

/// The fibers of a cluster, block by block.
std::vector<Fiber*> fibers_of(const Cluster& cluster) {
  std::vector<Fiber*> fibers;
  for (const Block& block : cluster.blocks) fibers.insert(fibers.end(), block.fibers.begin(), block.fibers.end());
  return fibers;
}

/// Nobody can run: names one that waits, and one that keeps it waiting.
[[noreturn]] void fail_stuck(const Cluster& cluster) {
  const std::vector<Fiber*> fibers = fibers_of(cluster);
  // One that waits for its block or its warp keeps the cluster waiting, not the other way round.
  auto waiting = std::ranges::find_if(fibers, [](const Fiber* f) { return !f->finished && f->wait != Wait::cluster; });
  if (waiting == fibers.end()) waiting = std::ranges::find_if(fibers, [](const Fiber* f) { return !f->finished; });
  const Fiber& first = **waiting;
  const auto absent = std::ranges::find_if(fibers, [&](const Fiber* other) {
    if (other == &first) return false;
    if (first.wait == Wait::cluster) return other->wait != Wait::cluster;
    if (other->block != first.block) return false;
    if (first.wait == Wait::block) return other->wait != Wait::block;
    const bool named =
        other->thread / warp_size == first.thread / warp_size && (first.mask >> (other->thread % warp_size) & 1U) != 0;
    return named && (other->wait != Wait::warp || other->mask != first.mask);
  });
  state.block_index = first.block->index;
  fail<HostExecutionError>("{}: {} for ever: {}", place(), describe(first),
                           absent == fibers.end() ? "nobody is left to come" : describe(**absent));
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

/// Runs the blocks from `first` on that differ in z alone, one a cluster or several.
void run_cluster(std::vector<std::unique_ptr<Fiber>>& pool, unsigned threads, uint3 first) {
  Cluster cluster;
  cluster.blocks.resize(state.cluster);
  for (unsigned rank = 0; rank < state.cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    block.index = {first.x, first.y, first.z + rank};
    block.warp_posted.resize((threads + warp_size - 1) / warp_size);
    block.warp_combined.resize(block.warp_posted.size());
    for (unsigned thread = 0; thread < threads; ++thread) {
      Fiber& fiber = *pool[rank * threads + thread];
      fiber.block = &block;
      fiber.thread = thread;
      fiber.finished = false;
      fiber.arrived = false;
      fiber.wait = Wait::nothing;
      block.fibers.push_back(&fiber);
    }
  }
  const std::vector<Fiber*> fibers = fibers_of(cluster);
  scheduler.cluster = &cluster;
  const auto leave = [&] {
    for (const Block& block : cluster.blocks)
      for (size_t i = 0; i < block.shared_count; ++i) scheduler.garbage.push_back(block.shared[i].memory);
#ifndef HOSTEXEC_TSAN  // freeing is writing, and nothing has ordered us behind these blocks' threads yet
    release_shared_memory();
#endif
    scheduler.cluster = nullptr;
  };
  try {
    std::vector<Fiber*> ready;
    for (uint64_t round = 0;; ++round) {
      ready.clear();
      std::ranges::copy_if(fibers, std::back_inserter(ready),
                           [](const Fiber* f) { return !f->finished && f->wait == Wait::nothing; });
      if (ready.empty()) {
        if (std::ranges::all_of(fibers, &Fiber::finished)) break;
        fail_stuck(cluster);
      }
      arrange(ready, round);
      for (Fiber* fiber : ready) {
        resume(*fiber);
        if (fiber->error) std::rethrow_exception(std::exchange(fiber->error, nullptr));
      }
    }
  } catch (...) {
    scheduler.abandoning = true;
    for (Fiber* fiber : fibers)
      if (!fiber->finished) resume(*fiber);
    scheduler.abandoning = false;
    order_after(&scheduler.done);
    leave();
    throw;
  }
  leave();
}

void run(const char* name, dim3 blocks, unsigned threads, size_t shared_bytes, unsigned cluster,
         const std::function<void()>& body) {
  if (scheduler.running != nullptr) throw HostExecutionError("a kernel cannot launch a kernel here");
  finish_uploads();
  if (threads == 0 || threads > 1024) fail<HostExecutionError>("{}: {} threads in a block", name, threads);
  if (cluster == 0 || cluster > 8 || blocks.z % cluster != 0)
    fail<HostExecutionError>("{}: clusters of {} in a grid {} deep", name, cluster, blocks.z);
  if (cluster > 1 && compiled_for() < 90)
    fail<HostExecutionError>("{}: clusters on compute capability {}.{}", name, compiled_for() / 10,
                             compiled_for() % 10);
  scheduler.kernel = name;
  scheduler.body = &body;
  state.block_dimensions = dim3(threads);
  state.grid_dimensions = blocks;
  state.shared_bytes = shared_bytes;
  state.cluster = cluster;
#ifdef HOSTEXEC_TSAN
  scheduler.main_tsan_fiber = __tsan_get_current_fiber();
#endif
  for (auto& pool : scheduler.pools)
    while (pool.size() < size_t{threads} * cluster) pool.push_back(std::make_unique<Fiber>());
  order_before(&scheduler.launched);

  std::vector<uint64_t> order(size_t{blocks.x} * blocks.y * (blocks.z / cluster));
  std::iota(order.begin(), order.end(), uint64_t{0});
  arrange(order, ~uint64_t{0});
  try {
    size_t turn = 0;
    for (const uint64_t index : order) {
      run_cluster(scheduler.pools[turn++ % 2], threads,
                  {static_cast<unsigned>(index % blocks.x), static_cast<unsigned>(index / blocks.x % blocks.y),
                   static_cast<unsigned>(index / blocks.x / blocks.y) * cluster});
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

void run_grid(const char* name, dim3 blocks, unsigned threads, std::function<void()> thread_body, size_t shared_bytes,
              unsigned cluster) {
  if (dry_mode) {
    launches.push_back({name, blocks, threads, shared_bytes, cluster});
  } else if (capturing()) {
    record([=, body = std::move(thread_body)] { run(name, blocks, threads, shared_bytes, cluster, body); });
  } else {
    run(name, blocks, threads, shared_bytes, cluster, thread_body);
  }
}

void* shared_object(const void* key, size_t size) {
  Block& block = *scheduler.running->block;
  for (size_t i = 0; i < block.shared_count; ++i)
    if (block.shared[i].key == key) return block.shared[i].memory;
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
  block.shared[block.shared_count++] = {key, object, size};
  return object;
}

void block_barrier(std::source_location where) {
  Fiber& self = *scheduler.running;
  Block& block = *scheduler.running->block;
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

void arrive_in_cluster(bool publish, std::source_location where) {
  Fiber& self = *scheduler.running;
  Cluster& cluster = *scheduler.cluster;
  if (self.arrived) fail_here("cluster_arrive twice without cluster_wait", where);
  self.arrived = true;
  self.turn = cluster.barrier_turn;
  if (publish) order_before(&cluster.barrier_points[self.turn]);
  if (++cluster.at_barrier < cluster.blocks.size() * self.block->fibers.size()) return;
  cluster.at_barrier = 0;
  cluster.barrier_turn ^= 1;
  for (const Block& block : cluster.blocks)
    for (Fiber* fiber : block.fibers)
      if (fiber->wait == Wait::cluster) fiber->wait = Wait::nothing;
}

void wait_for_cluster(std::source_location where) {
  Fiber& self = *scheduler.running;
  if (!self.arrived) fail_here("cluster_wait without cluster_arrive", where);
  self.arrived = false;
  if (scheduler.cluster->barrier_turn == self.turn) {
    self.wait = Wait::cluster;
    self.what = "cluster_wait";
    self.where = where;
    suspend();
  }
  order_after(&scheduler.cluster->barrier_points[self.turn]);
}

const void* in_cluster(const void* own, unsigned rank, std::source_location where) {
  const Block& block = *scheduler.running->block;
  const Cluster& cluster = *scheduler.cluster;
  if (rank >= cluster.blocks.size()) fail_here("a block that the cluster does not have", where);
  const Block& other = cluster.blocks[rank];
  if (std::ranges::any_of(other.fibers, &Fiber::finished))
    fail_here("shared memory of a block of which threads have ended", where);
  const auto holds = [own](const SharedObject& object) {
    const std::less<const void*> before;
    return object.memory != nullptr && !before(own, object.memory) &&
           before(own, static_cast<const char*>(object.memory) + object.size);
  };
  const auto object = std::ranges::find_if(block.shared, holds);
  if (object == block.shared.end()) fail_here("a place in a cluster that is not in shared memory", where);
  const auto of_other = std::ranges::find(other.shared, object->key, &SharedObject::key);
  if (of_other == other.shared.end()) fail_here("shared memory that the other block does not have yet", where);
  return static_cast<const char*>(of_other->memory) +
         (static_cast<const char*>(own) - static_cast<const char*>(object->memory));
}

void warp_collective(unsigned mask, const char* what, std::source_location where, void* slot, Combine combine) {
  Fiber& self = *scheduler.running;
  Block& block = *scheduler.running->block;
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
