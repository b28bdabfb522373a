#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/packed_tensor.h"
#include "engine/quant/second_moments.h"

namespace nibblenet::testing {

inline TensorView<const float> view(const std::vector<float>& values, const Shape& shape) {
  return {values.data(), shape};
}

/// Numbers of about the normal distribution, between -2 and 2.
inline std::vector<float> bell_shaped(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(random.uniform() + random.uniform() + random.uniform() + random.uniform() - 2.0F);
  return values;
}

/// Moments of inputs as a ReLU leaves them: not negative, of different sizes, each akin to its neighbours.
inline SecondMoments correlated_moments(int64_t inputs, int64_t rows, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(static_cast<size_t>(rows * inputs));
  for (int64_t row = 0; row < rows; ++row) {
    float drift = 0;
    for (int64_t k = 0; k < inputs; ++k) {
      drift = 0.8F * drift + random.uniform() - 0.5F;
      x[static_cast<size_t>(row * inputs + k)] =
          std::max(0.0F, drift + 0.3F * random.uniform()) * (1.0F + static_cast<float>(k % 7));
    }
  }
  MomentAccumulator accumulator(inputs);
  accumulator.add({x.data(), {rows, inputs}});
  return std::move(accumulator).finish();
}

inline SecondMoments identity(int64_t inputs) {
  SecondMoments moments{.inputs = inputs, .values = std::vector<float>(static_cast<size_t>(inputs * inputs))};
  for (int64_t i = 0; i < inputs; ++i) moments.values[static_cast<size_t>(i * inputs + i)] = 1;
  return moments;
}

inline std::vector<double> row_errors(const PackedTensor& packed, const std::vector<float>& weights,
                                      const SecondMoments& moments) {
  std::vector<float> values(weights.size());
  dequantize(packed, {values.data(), packed.shape});
  return output_error(view(weights, packed.shape), view(values, packed.shape), moments);
}

/// Output error of all rows.
inline double error_under(const PackedTensor& packed, const std::vector<float>& weights, const SecondMoments& moments) {
  const std::vector<double> errors = row_errors(packed, weights, moments);
  return std::accumulate(errors.begin(), errors.end(), 0.0);
}

}  // namespace nibblenet::testing
