#pragma once

#include <cstddef>
#include <vector>

#include "kernels/cuda/device/device.h"

namespace nibblenet {

/// Asynchronous copies from the device. The stream copies to page-locked memory; finish() copies
/// from there to the destination. Move-only.
class Downloads {
 public:
  Downloads() = default;
  ~Downloads();
  Downloads(const Downloads&) = delete;
  Downloads& operator=(const Downloads&) = delete;

  /// Queues a copy; `host` is written by finish().
  void copy(void* host, const void* source, size_t bytes, Stream& stream);
  /// Waits for the queued copies only, not for work queued after them.
  void finish();

 private:
  struct Pending {
    void* host;
    size_t offset;  ///< in the page-locked memory
    size_t bytes;
  };
  std::byte* reserve(size_t bytes);

  std::byte* memory_ = nullptr;  ///< page-locked
  size_t size_ = 0;
  size_t used_ = 0;
  std::vector<Pending> pending_;
  Event arrived_;
};

}  // namespace nibblenet
