#pragma once

#include <optional>
#include <vector>

#include "engine/core/memory.h"
#include "engine/core/tensor.h"

namespace nibblenet {

/// Bytes of a device's memory as its driver reports them, those of other processes and of the
/// driver included.
struct DeviceMemory {
  size_t used = 0;
  size_t total = 0;
};

/// Memory of a backend, and copies between it and the host. Operations, copies included, run in the
/// order of their calls, and may return before they are done.
class BackendMemory : public MemoryResource {
 public:
  /// Copies to the device. `source` may change once this returns.
  virtual void copy_from_host(void* destination, const void* source, size_t bytes) = 0;
  /// Copies to the host. Waits for all earlier operations, then for the copy.
  virtual void copy_to_host(void* destination, const void* source, size_t bytes) = 0;
  /// Copies without waiting: `destination` is complete after finish_copies() and must live until
  /// then. Later operations may overwrite `source`.
  virtual void copy_to_host_later(void* destination, const void* source, size_t bytes) {
    copy_to_host(destination, source, bytes);
  }
  /// Waits for the copies of copy_to_host_later, not for operations that were called after them.
  virtual void finish_copies() {}
  /// Waits until all operations are done.
  virtual void synchronize() {}
  /// The use of the device's memory; nothing when the backend's memory is the process's.
  virtual std::optional<DeviceMemory> device_memory() const { return std::nullopt; }

  /// A copy of `values` in host memory, as a tensor or as a vector.
  Tensor<float> read_back(TensorView<const float> values) {
    Tensor<float> copy(host_memory(), values.shape(), MemoryCategory::data);
    if (values.elements() > 0) copy_to_host(copy.data(), values.data(), values.span().size_bytes());
    return copy;
  }
  std::vector<float> to_host(TensorView<const float> values) {
    std::vector<float> copy(values.span().size());
    copy_to_host(copy.data(), values.data(), values.span().size_bytes());
    return copy;
  }

  /// Makes room for `size` elements in a workspace, whose contents are lost where it was smaller.
  template <class T>
  void grow(Buffer<T>& workspace, size_t size) {
    if (workspace.size() >= size) return;
    workspace = {};  // free the old one first
    workspace = Buffer<T>(*this, size, MemoryCategory::workspace);
  }
};

}  // namespace nibblenet
