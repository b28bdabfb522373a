#include "training/compression/pruning.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <optional>
#include <vector>

namespace nibblenet {
namespace {

/// Magnitudes in the order of floats, as integers.
uint32_t magnitude_bits(float weight) { return std::bit_cast<uint32_t>(weight) & 0x7FFFFFFFU; }

constexpr int half_bits = 16;
constexpr size_t half_values = size_t{1} << half_bits;

/// A magnitude, and how many equal ones come before it.
struct Rank {
  uint32_t bits;
  int64_t before;
};

/// Counts each value of the magnitudes' upper 16 bits or, given `upper`, of the lower bits behind
/// it.
std::vector<int64_t> count_halves(std::span<const std::span<float>> layers, std::optional<uint32_t> upper) {
  std::vector<int64_t> counts(half_values);
  for (const auto& weights : layers) {
#pragma omp parallel
    {
      std::vector<int64_t> own(half_values);
#pragma omp for
      for (const float weight : weights) {
        const uint32_t bits = magnitude_bits(weight);
        if (!upper)
          ++own[bits >> half_bits];
        else if (bits >> half_bits == *upper)
          ++own[bits & (half_values - 1)];
      }
#pragma omp critical
      std::ranges::transform(counts, own, counts.begin(), std::plus());
    }
  }
  return counts;
}

/// Returns the value that holds the element of this rank. `rank` becomes its rank within the value.
uint32_t take_rank(std::span<const int64_t> counts, int64_t& rank) {
  uint32_t value = 0;
  while (rank >= counts[value]) rank -= counts[value++];
  return value;
}

/// Finds the magnitude of a rank (0: the smallest) by two passes over the weights, without a sorted
/// copy.
Rank find_rank(std::span<const std::span<float>> layers, int64_t rank) {
  const uint32_t upper = take_rank(count_halves(layers, {}), rank);
  const uint32_t lower = take_rank(count_halves(layers, upper), rank);
  return {.bits = upper << half_bits | lower, .before = rank};
}

}  // namespace

double ramped_fraction(double from, double to, double progress) {
  const double left = 1.0 - std::clamp(progress, 0.0, 1.0);
  return std::max(from, to + (from - to) * left * left * left);
}

PruningSchedule::PruningSchedule(double until, int64_t steps) {
  constexpr int64_t times = 60;
  last_ = std::clamp(std::llround(until * static_cast<double>(steps)), 0LL, static_cast<long long>(steps) - 1);
  interval_ = std::max<int64_t>(1, last_ / times);
}

double PruningSchedule::progress(int64_t step) const {
  return last_ == 0 ? 1.0 : std::min(1.0, static_cast<double>(step) / static_cast<double>(last_));
}

int64_t count_zeros(std::span<const float> weights) {
  int64_t zeros = 0;
#pragma omp parallel for reduction(+ : zeros)
  for (const float weight : weights) zeros += weight == 0.0F ? 1 : 0;
  return zeros;
}

void prune_smallest(std::span<const std::span<float>> layers, double fraction) {
  int64_t count = 0;
  for (const auto& weights : layers) count += static_cast<int64_t>(weights.size());
  const int64_t wanted = std::llround(fraction * static_cast<double>(count));
  if (wanted <= 0) return;
  const Rank last = find_rank(layers, std::min(wanted, count) - 1);
  int64_t ties = last.before + 1;
  for (const auto& weights : layers) {
#pragma omp parallel for
    for (float& weight : weights)
      if (magnitude_bits(weight) < last.bits) weight = 0.0F;
    for (size_t i = 0; ties > 0 && i < weights.size(); ++i)
      if (magnitude_bits(weights[i]) == last.bits) {
        weights[i] = 0.0F;
        --ties;
      }
  }
}

}  // namespace nibblenet
