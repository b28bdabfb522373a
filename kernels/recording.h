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
  /// Milliseconds of one replay by the device's own clock: the mean of `count` replays, at least
  /// one, in a row. `before` queues other work in front of them and does not wait: while the device
  /// does it, the host queues the replays. Waits until all is done.
  virtual double device_time(int64_t count, const std::function<void()>& before) = 0;
};

/// Recording of operations. A backend that gains nothing by it overrides nothing.
class Recorder {
 public:
  virtual ~Recorder() = default;
  /// Records the operations that `work` calls, and runs none of them. Returns null, without calling
  /// `work`, when the backend does not record.
  /// Requires: `work` has run before on the same operands, and neither allocates nor waits now.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& /*work*/) { return nullptr; }
};

}  // namespace nibblenet
