#pragma once

#include <cstdint>
#include <optional>

#include "engine/core/error.h"

namespace nibblenet {

/// The order between a backend's operations and what others in this process, such as PyTorch, queue
/// on streams of the same GPU. A stream is a cudaStream_t as a number, 0 the default stream. A
/// backend without a GPU overrides nothing.
class StreamOrder {
 public:
  virtual ~StreamOrder() = default;
  /// The GPU, as CUDA counts those of this process; nothing where there is none.
  virtual std::optional<int> gpu_number() const { return std::nullopt; }
  /// Operations that are called from here on wait for all that is queued on the stream now.
  virtual void wait_for_stream(uintptr_t /*stream*/) { throw Error("this device has no streams"); }
  /// What is queued on the stream from here on waits for all operations that were called so far.
  virtual void let_stream_wait(uintptr_t /*stream*/) { throw Error("this device has no streams"); }
};

}  // namespace nibblenet
