#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// The rate weight of the best trade on a fine grid: see gptq().
constexpr double best_rate_weight = 1.4;

/// The cost of bits in the file, for rounding that trades them against errors.
struct RateCost {
  double weight = 0;  ///< L of gptq(); 0: nothing
  /// The weight of errors in each output, relative to a mean of 1; empty: all the same.
  std::span<const float> fisher;
};

/// `fisher` of each of `outputs` outputs relative to its mean. An output of 0 still counts a
/// thousandth of the mean, since other images may use it. If `fisher` is empty or all 0, all
/// outputs count the same.
std::vector<float> relative_fisher(std::span<const float> fisher, int64_t outputs);

}  // namespace nibblenet
