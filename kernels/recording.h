#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace nibblenet {

/// A recorded sequence of operations, such as a CUDA graph. One call queues all of them: in small
/// batches, queueing an operation takes longer than the operation.
class Recording {
 public:
  virtual ~Recording() = default;
  /// Queues the operations again, on the same memory.
  virtual void replay() = 0;
  /// Returns false once the backend's scratch has moved: the operations must be recorded again.
  virtual bool current() const = 0;
  /// Number of operations.
  virtual int64_t operations() const = 0;
};

/// Recording of operations. A backend that gains nothing by it overrides nothing.
class Recorder {
 public:
  virtual ~Recorder() = default;
  /// Records the operations that `work` calls, and runs none of them. Returns null, without a call
  /// of `work`, where the backend does not record.
  /// Requires: `work` ran before with the same operands, so that it allocates nothing, and waits
  /// for nothing.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& /*work*/) { return nullptr; }
};

}  // namespace nibblenet
