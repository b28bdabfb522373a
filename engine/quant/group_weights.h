#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/quant/scheme.h"

namespace nibblenet {

/// The weights of every group side by side, in the order of their indices, for any granularity; and
/// the importance of each weight's error.
class GroupedWeights {
 public:
  /// `blocks`: the group of each weight of magnitude-sorted schemes, else empty. `importance`: one
  /// number for each weight of an output channel, or empty if all count the same.
  GroupedWeights(TensorView<const float> weights, const GroupMap& map, std::span<const uint32_t> blocks,
                 std::span<const float> importance);

  int64_t groups() const { return static_cast<int64_t>(begin_.size()) - 1; }
  std::span<const float> weights(int64_t group) const { return part(weights_, group); }
  /// One number for each weight of the group, or none if all count the same.
  std::span<const float> importance(int64_t group) const { return part(importance_, group); }

 private:
  std::span<const float> part(const std::vector<float>& values, int64_t group) const;

  std::vector<size_t> begin_;  ///< first index of each group, and the end
  std::vector<float> weights_;
  std::vector<float> importance_;
};

}  // namespace nibblenet
