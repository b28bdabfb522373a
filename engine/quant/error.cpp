#include "engine/quant/error.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace nibblenet {
namespace {

/// Weights of a run. Sums are taken over runs, then over the runs in order: rounding does not
/// depend on threads.
constexpr int64_t run = 1 << 16;

QuantizationError error_of_run(TensorView<const float> original, TensorView<const float> quantized, int64_t begin,
                               int64_t end) {
  QuantizationError error;
  for (int64_t i = begin; i < end; ++i) {
    const auto weight = static_cast<double>(original[i]);
    const double difference = weight - static_cast<double>(quantized[i]);
    error.squared += difference * difference;
    error.absolute += std::fabs(difference);
    error.signal += weight * weight;
  }
  error.weights = end - begin;
  return error;
}

}  // namespace

double QuantizationError::mse() const { return weights == 0 ? 0 : squared / static_cast<double>(weights); }

double QuantizationError::mae() const { return weights == 0 ? 0 : absolute / static_cast<double>(weights); }

double QuantizationError::snr_db() const {
  if (squared == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / squared);
}

QuantizationError& QuantizationError::operator+=(const QuantizationError& other) {
  weights += other.weights;
  squared += other.squared;
  absolute += other.absolute;
  signal += other.signal;
  return *this;
}

QuantizationError quantization_error(TensorView<const float> original, TensorView<const float> quantized) {
  expect_shape(quantized.shape(), original.shape(), "quantized weights");
  const int64_t count = original.elements();
  std::vector<QuantizationError> parts(static_cast<size_t>((count + run - 1) / run));
#pragma omp parallel for
  for (size_t part = 0; part < parts.size(); ++part) {
    const auto begin = static_cast<int64_t>(part) * run;
    parts[part] = error_of_run(original, quantized, begin, std::min(begin + run, count));
  }
  QuantizationError total;
  for (const QuantizationError& part : parts) total += part;
  return total;
}

}  // namespace nibblenet
