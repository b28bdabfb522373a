#include "training/pruning.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace nibblenet {

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
  for (size_t i = 0; i < weights.size(); ++i) zeros += weights[i] == 0.0F ? 1 : 0;
  return zeros;
}

void prune_smallest(std::span<const std::span<float>> layers, double fraction) {
  std::vector<float> magnitudes;
  for (const auto& weights : layers)
    for (const float weight : weights) magnitudes.push_back(std::fabs(weight));
  const auto wanted = static_cast<size_t>(std::llround(fraction * static_cast<double>(magnitudes.size())));
  if (wanted == 0) return;
  const auto last = magnitudes.begin() + static_cast<int64_t>(std::min(wanted, magnitudes.size()) - 1);
  std::ranges::nth_element(magnitudes, last);
  const float threshold = *last;
  auto ties = static_cast<int64_t>(std::ranges::count(magnitudes.begin(), last + 1, threshold));
  for (const auto& weights : layers)
    for (float& weight : weights) {
      const float magnitude = std::fabs(weight);
      if (magnitude < threshold || (magnitude == threshold && ties-- > 0)) weight = 0.0F;
    }
}

}  // namespace nibblenet
