#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/activations.h"
#include "kernels/recording.h"

namespace nibblenet {

/// A cache of recordings (Recorder::record) of work on batches, by the batch's memory.
class Replays {
 public:
  /// The work to record, which returns its result for a batch.
  using Work = std::function<ConstActivations(ConstActivations x)>;

  /// Returns work(x). When the same memory, shape and precision come a second time, records the
  /// work; from then on replays it. Requires: for these, work() always queues the same operations
  /// on the same memory.
  ConstActivations run(Recorder& backend, ConstActivations x, const Work& work);
  /// The number of operations in the last recording; nothing without one.
  std::optional<int64_t> operations() const;

 private:
  struct Entry {
    ConstActivations x;
    ConstActivations result;
    std::unique_ptr<Recording> recording;
  };
  Entry* find(ConstActivations x);

  static constexpr size_t most = 4;  ///< whole batches and the last, smaller one, each in two buffers
  std::vector<Entry> entries_;       ///< the oldest first
};

}  // namespace nibblenet
