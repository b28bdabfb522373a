#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "engine/core/random.h"

namespace nibblenet::testing {

/// Numbers of a normal distribution (Box-Muller).
inline std::vector<float> normal(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    const double radius = std::sqrt(-2 * std::log(1 - static_cast<double>(random.uniform())));
    value = static_cast<float>(radius * std::cos(6.283185307179586 * static_cast<double>(random.uniform())));
  }
  return values;
}

inline double squares(std::span<const float> values) {
  return std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
}

}  // namespace nibblenet::testing
