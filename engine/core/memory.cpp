#include "engine/core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "engine/core/error.h"

namespace nibblenet {
namespace {

constexpr size_t alignment = 64;  // a cache line, and a full AVX-512 register
constexpr size_t large_page = size_t{2} << 20;

constexpr std::array<std::string_view, memory_category_count> category_names = {
    "codes",     "scales",    "zero_points", "codebooks", "block_ids", "biases", "weights",
    "gradients", "optimizer", "activations", "features",  "workspace", "data"};

void raise_to(std::atomic<size_t>& maximum, size_t value) noexcept {
  size_t seen = maximum.load();
  while (seen < value && !maximum.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

std::string_view to_string(MemoryCategory category) { return category_names.at(static_cast<size_t>(category)); }

void MemoryMeter::Counter::add(size_t bytes) noexcept {
  raise_to(peak, live.fetch_add(bytes) + bytes);
  raise_to(largest, bytes);
}

void MemoryMeter::add(MemoryCategory category, size_t bytes) noexcept {
  counters_[static_cast<size_t>(category)].add(bytes);
  total_.add(bytes);
}

void MemoryMeter::remove(MemoryCategory category, size_t bytes) noexcept {
  counters_[static_cast<size_t>(category)].live.fetch_sub(bytes);
  total_.live.fetch_sub(bytes);
}

size_t MemoryMeter::live(MemoryCategory category) const noexcept {
  return counters_[static_cast<size_t>(category)].live.load();
}

size_t MemoryMeter::peak(MemoryCategory category) const noexcept {
  return counters_[static_cast<size_t>(category)].peak.load();
}

size_t MemoryMeter::largest(MemoryCategory category) const noexcept {
  return counters_[static_cast<size_t>(category)].largest.load();
}

void* MemoryResource::allocate(size_t bytes, MemoryCategory category) {
  void* data = do_allocate(bytes);
  meter_.add(category, bytes);
  return data;
}

void MemoryResource::deallocate(void* data, size_t bytes, MemoryCategory category) noexcept {
  do_deallocate(data, bytes);
  meter_.remove(category, bytes);
}

void* HostMemory::do_allocate(size_t bytes) {
  // Allocates exactly the requested bytes, so that AddressSanitizer sees every overrun.
  void* data = nullptr;
  const bool large = bytes >= large_page;
  if (posix_memalign(&data, large ? large_page : alignment, std::max<size_t>(bytes, 1)) != 0) data = nullptr;
  if (data == nullptr) fail<Error>("out of memory: could not allocate {} bytes", bytes);
#ifdef MADV_HUGEPAGE
  // Fewer misses of the TLB. Only pages that the block fills, so that none takes more than its
  // bytes. Where the system has no large pages to give, nothing changes.
  if (large) madvise(data, bytes / large_page * large_page, MADV_HUGEPAGE);
#endif
  return data;
}

void HostMemory::do_deallocate(void* data, size_t) noexcept { std::free(data); }

HostMemory& host_memory() {
  static HostMemory memory;
  return memory;
}

}  // namespace nibblenet
