#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/hessian.h"
#include "engine/quant/packed_tensor.h"

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

/// The Hessian of inputs as a ReLU leaves them: not negative, of different sizes, each akin to its
/// neighbours.
inline Hessian correlated_hessian(int64_t inputs, int64_t rows, uint64_t seed) {
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
  HessianAccumulator accumulator(inputs);
  accumulator.add({x.data(), {rows, inputs}});
  return std::move(accumulator).finish();
}

inline Hessian identity(int64_t inputs) {
  Hessian hessian{.inputs = inputs, .values = std::vector<float>(static_cast<size_t>(inputs * inputs))};
  for (int64_t i = 0; i < inputs; ++i) hessian.values[static_cast<size_t>(i * inputs + i)] = 1;
  return hessian;
}

inline std::vector<double> row_errors(const PackedTensor& packed, const std::vector<float>& weights,
                                      const Hessian& hessian) {
  std::vector<float> values(weights.size());
  dequantize(packed, {values.data(), packed.shape});
  return output_error(view(weights, packed.shape), view(values, packed.shape), hessian);
}

/// Output error of all rows.
inline double error_under(const PackedTensor& packed, const std::vector<float>& weights, const Hessian& hessian) {
  const std::vector<double> errors = row_errors(packed, weights, hessian);
  return std::accumulate(errors.begin(), errors.end(), 0.0);
}

}  // namespace nibblenet::testing
