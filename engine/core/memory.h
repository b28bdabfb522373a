#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace nibblenet {

/// The purpose of an allocation: the meter counts bytes by it, and reports list them by it.
enum class MemoryCategory : uint8_t {
  codes,        ///< n-bit codes of packed weights, with their alignment padding
  scales,       ///< one per group of packed weights
  zero_points,  ///< one per group of affine schemes
  codebooks,    ///< the values codes stand for
  block_ids,    ///< group numbers of magnitude-sorted schemes
  biases,       ///< float32, never quantized
  weights,      ///< float32 weights
  gradients,    ///< of weights and biases
  optimizer,    ///< momenta, and scales that train
  activations,  ///< outputs of layers, kept for the backward pass when training
  features,     ///< cached outputs of frozen layers
  workspace,    ///< scratch of kernels: panels of dequantized weights, reordered copies
  data,         ///< images and labels
  count
};

/// Number of categories.
inline constexpr size_t memory_category_count = static_cast<size_t>(MemoryCategory::count);

/// The category's name in reports and JSON.
std::string_view to_string(MemoryCategory category);

/// Counts live and peak bytes by category. It is thread-safe. It counts requested bytes: sizes are
/// those of the data, not of an allocator.
class MemoryMeter {
 public:
  /// Counts an allocation, and its release.
  void add(MemoryCategory category, size_t bytes) noexcept;
  void remove(MemoryCategory category, size_t bytes) noexcept;

  /// Bytes of a category: now, and at most so far.
  size_t live(MemoryCategory category) const noexcept;
  size_t peak(MemoryCategory category) const noexcept;
  size_t live_total() const noexcept { return total_.live.load(); }
  size_t peak_total() const noexcept { return total_.peak.load(); }
  /// Size of the largest single allocation. A test uses it to prove that packed weights have no
  /// float copy.
  size_t largest(MemoryCategory category) const noexcept;

 private:
  struct Counter {
    std::atomic<size_t> live{0};
    std::atomic<size_t> peak{0};
    std::atomic<size_t> largest{0};
    void add(size_t bytes) noexcept;
  };
  std::array<Counter, memory_category_count> counters_;
  Counter total_;
};

/// A source of memory, on the host or on a device. Every allocation is metered.
class MemoryResource {
 public:
  virtual ~MemoryResource() = default;
  /// Returns memory aligned to at least 64 bytes, contents undefined. `bytes` may be 0. Throws
  /// Error when memory is exhausted.
  void* allocate(size_t bytes, MemoryCategory category);
  void deallocate(void* data, size_t bytes, MemoryCategory category) noexcept;

  MemoryMeter& meter() { return meter_; }
  const MemoryMeter& meter() const { return meter_; }

 private:
  virtual void* do_allocate(size_t bytes) = 0;
  virtual void do_deallocate(void* data, size_t bytes) noexcept = 0;
  MemoryMeter meter_;
};

/// The process's own memory.
class HostMemory final : public MemoryResource {
 private:
  void* do_allocate(size_t bytes) override;
  void do_deallocate(void* data, size_t bytes) noexcept override;
};

/// The host memory for data that belongs to no backend: files, data sets.
HostMemory& host_memory();

/// Owns `size` objects of type T in a MemoryResource. Move-only; contents are not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(MemoryResource& resource, size_t size, MemoryCategory category)
      : resource_(&resource),
        data_(static_cast<T*>(resource.allocate(size * sizeof(T), category))),
        size_(size),
        category_(category) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (resource_ != nullptr) resource_->deallocate(data_, size_ * sizeof(T), category_);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(category_, other.category_);
  }
  MemoryResource* resource_ = nullptr;
  T* data_ = nullptr;
  size_t size_ = 0;
  MemoryCategory category_ = MemoryCategory::workspace;
};

}  // namespace nibblenet
