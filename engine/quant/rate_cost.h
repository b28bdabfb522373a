#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// The best trade on a fine grid: see gptq().
constexpr double best_rate_weight = 1.4;

/// What bits in the file cost beside errors, for rounding that weighs both.
struct RateCost {
  double weight = 0;  ///< L of gptq(); 0: nothing
  /// How much an error in each output counts, relative to a mean of 1; empty: all the same.
  std::span<const float> fisher;
};

/// What `fisher` of each of `outputs` outputs is relative to its mean. Outputs of none still count a thousandth of
/// it: other images may see them. Nothing, and outputs that are all of none, count the same.
std::vector<float> relative_fisher(std::span<const float> fisher, int64_t outputs);

}  // namespace nibblenet
