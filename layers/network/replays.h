#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/activations.h"
#include "kernels/recording.h"

namespace nibblenet {

/// Work on batches that a backend can record (Recorder::record), by where its operand lies.
class Replays {
 public:
  /// What is recorded: it returns its result for a batch.
  using Work = std::function<ConstActivations(ConstActivations x)>;

  /// work(x). When the same place, shape and precision come a second time the work is recorded, and
  /// from then on replayed: for them it must always queue the same operations, on the same memory.
  ConstActivations run(Recorder& backend, ConstActivations x, const Work& work);
  /// Of what was recorded last; nothing where nothing was.
  std::optional<int64_t> operations() const;

 private:
  struct Entry {
    ConstActivations x;
    ConstActivations result;
    std::unique_ptr<Recording> recording;
  };
  Entry* find(ConstActivations x);

  static constexpr size_t most = 4;  ///< as whole batches and the last, smaller one, from two places
  std::vector<Entry> entries_;       ///< the oldest first
};

}  // namespace nibblenet
