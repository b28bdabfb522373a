#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/quant/scheme.h"

namespace nibblenet {

/// The weights of every group side by side, in the order of their indices, whatever the granularity; and how much the
/// error of each counts.
class GroupedWeights {
 public:
  /// `blocks` holds the group of each weight of magnitude-sorted schemes and is empty for the others; `importance` one
  /// number for every weight of an output channel, or nothing where all count the same.
  GroupedWeights(TensorView<const float> weights, const GroupMap& map, std::span<const uint32_t> blocks,
                 std::span<const float> importance);

  int64_t groups() const { return static_cast<int64_t>(begin_.size()) - 1; }
  std::span<const float> weights(int64_t group) const { return part(weights_, group); }
  /// As many, or none where all count the same.
  std::span<const float> importance(int64_t group) const { return part(importance_, group); }

 private:
  std::span<const float> part(const std::vector<float>& values, int64_t group) const;

  std::vector<size_t> begin_;  ///< of each group, and the end
  std::vector<float> weights_;
  std::vector<float> importance_;
};

}  // namespace nibblenet
