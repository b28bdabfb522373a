#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/gptq.h"
#include "tests/engine/quant/cases.h"

namespace nibblenet::testing {

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

/// gptq() from the Hessian itself.
inline GptqReport gptq(PackedTensor& packed, TensorView<const float> weights, const Hessian& hessian,
                       ColumnOrder order = ColumnOrder::natural, const GptqOptions& options = {}) {
  return nibblenet::gptq(packed, weights, factorize(hessian, order), options);
}

/// Output error of every output channel: (w - v) H (w - v)^T for weights w and rounded weights v,
/// [K, ...]. This is the plain reference, in float64.
inline std::vector<double> output_error(TensorView<const float> weights, TensorView<const float> rounded,
                                        const Hessian& hessian) {
  expect_shape(rounded.shape(), weights.shape(), "rounded weights");
  const int64_t n = hessian.inputs;
  if (weights.shape().inner_elements() != n)
    fail<ShapeError>("weights {} and a Hessian of {} inputs", to_string(weights.shape()), n);
  std::vector<double> errors(static_cast<size_t>(weights.size(0)));
#pragma omp parallel for
  for (int64_t row = 0; row < weights.size(0); ++row) {
    const auto difference = [&](int64_t k) {
      return static_cast<double>(weights[row * n + k]) - static_cast<double>(rounded[row * n + k]);
    };
    double error = 0;
    for (int64_t i = 0; i < n; ++i) {
      double product = 0;
      for (int64_t j = 0; j < n; ++j) product += static_cast<double>(hessian.at(i, j)) * difference(j);
      error += difference(i) * product;
    }
    errors[static_cast<size_t>(row)] = error;
  }
  return errors;
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
