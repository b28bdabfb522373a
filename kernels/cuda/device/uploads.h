#pragma once

#include <array>
#include <cstddef>

#include "kernels/cuda/device/device.h"

namespace nibblenet {

/// Copies to the device that do not wait for it: bytes go through a ring of page-locked buffers,
/// from which the device fetches them when its stream gets there, while the host fills the next
/// ones. Move-only.
class Uploads {
 public:
  Uploads() = default;
  ~Uploads();
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  /// Queues a copy; by the time it returns, host memory may be changed. Waits only while all
  /// buffers are under way.
  void copy(void* destination, const void* host, size_t bytes, Stream& stream);

 private:
  static constexpr size_t piece_bytes = size_t{2} << 20;
  struct Piece {
    void* memory = nullptr;  ///< null until it is needed
    Event fetched;
  };
  Piece& next_free();

  std::array<Piece, 4> pieces_;
  size_t next_ = 0;
};

}  // namespace nibblenet
