#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

#include "engine/core/error.h"

// Runs a grid of CUDA threads on the CPU: one fiber a thread, cluster after cluster of blocks.
// Sanitizers see every access, and every barrier knows which threads wait where.

namespace nibblenet::hostexec {

/// An error that would hang a GPU or give garbage: a barrier that not all threads reach, a mask
/// that names a lane which has left, a copy that was not waited for. The message names the kernel,
/// the threads and the lines.
class HostExecutionError : public Error {
 public:
  using Error::Error;
};

/// Choices that CUDA leaves open. A correct kernel has the same result for all of them.
struct Schedule {
  enum class Order : uint8_t { forward, reverse, random };
  Order order = Order::forward;  ///< in which threads that can run do run, and blocks
  uint64_t seed = 0;             ///< of the random order
  bool late_copies = false;      ///< cp.async moves its bytes when it is waited for, not at once
};
void set_schedule(const Schedule& schedule);
const Schedule& schedule();

/// Dry mode: launches are noted and run nothing, so shapes of any size show which kernels they
/// start.
void set_dry(bool dry);
bool dry();
/// A launch in dry mode.
struct Launch {
  std::string name;
  dim3 blocks;
  unsigned threads = 0;
  size_t shared_bytes = 0;
  unsigned cluster = 1;
};
/// Launches since the last call, in their order.
std::vector<Launch> take_launches();

/// Asynchronous copies of one thread, in groups.
struct PendingCopy {
  void* target;
  const void* source;  ///< null: zeros
  size_t bytes;
};
struct CopyGroups {
  std::vector<PendingCopy> open;                 ///< started since the last commit
  std::vector<std::vector<PendingCopy>> closed;  ///< committed and not waited for, oldest first
};

/// The state behind the built-in variables and wrappers of the running thread.
struct ThreadState {
  uint3 thread_index{};
  uint3 block_index{};
  dim3 block_dimensions;
  dim3 grid_dimensions;
  size_t shared_bytes = 0;  ///< of the launch
  unsigned cluster = 1;     ///< blocks of a cluster
  CopyGroups* copies = nullptr;
};
extern ThreadState state;

/// Runs `thread_body` once for every thread. Throws HostExecutionError, or what the body threw.
/// While a graph is being captured, the grid is recorded instead; in dry mode it is noted.
/// `cluster`: so many blocks that differ in z alone run at once, as a thread block cluster.
void run_grid(const char* name, dim3 blocks, unsigned threads, std::function<void()> thread_body,
              size_t shared_bytes = 0, unsigned cluster = 1);

// For the wrappers in gpu_shim.h.

/// The block's object of `size` bytes behind `key`, made of NaN bytes when it is first asked for.
void* shared_object(const void* key, size_t size);

void block_barrier(std::source_location where);

/// The two halves of a cluster's barrier. `publish`: orders what the thread did before all who have
/// waited.
void arrive_in_cluster(bool publish, std::source_location where);
void wait_for_cluster(std::source_location where);
/// The place in the shared memory of block `rank` of the cluster that `own` is in the block's own.
const void* in_cluster(const void* own, unsigned rank, std::source_location where);

/// Waits until every lane of `mask` has called this from the same place. The last lane runs
/// `combine`, which sees every lane's slot and writes the results there.
using Combine = void (*)(void* const* slots, unsigned mask);
void warp_collective(unsigned mask, const char* what, std::source_location where, void* slot, Combine combine);

/// Throws HostExecutionError, naming the kernel and the running thread.
[[noreturn]] void fail_here(const std::string& what, std::source_location where);

}  // namespace nibblenet::hostexec
