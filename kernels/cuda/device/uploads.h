#pragma once

#include <array>
#include <cstddef>

#include "kernels/cuda/device/device.h"

namespace nibblenet {

/// Asynchronous copies to the device through a ring of page-locked buffers. The stream copies from
/// one buffer while the host fills the next one. Move-only.
class Uploads {
 public:
  Uploads() = default;
  ~Uploads();
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;

  /// Queues a copy. Host memory may be changed once the call returns. Waits only while all buffers
  /// are in use.
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
