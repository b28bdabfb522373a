#include "engine/quant/error.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <vector>

#include "engine/core/random.h"

namespace nibblenet {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();

QuantizationError error_of(const std::vector<float>& original, const std::vector<float>& quantized) {
  const Shape shape{static_cast<int64_t>(original.size())};
  return quantization_error({original.data(), shape}, {quantized.data(), shape});
}

TEST(QuantizationError, OfHandPickedValues) {
  const QuantizationError error = error_of({1, -2, 3, 0}, {1.5F, -2, 1, -1});
  EXPECT_EQ(error.weights, 4);
  EXPECT_EQ(error.squared, 0.25 + 4 + 1);
  EXPECT_EQ(error.absolute, 0.5 + 2 + 1);
  EXPECT_EQ(error.signal, 1 + 4 + 9);
  EXPECT_EQ(error.mse(), 5.25 / 4);
  EXPECT_EQ(error.mae(), 3.5 / 4);
  EXPECT_DOUBLE_EQ(error.snr_db(), 10 * std::log10(14 / 5.25));
}

TEST(QuantizationError, HasLimits) {
  EXPECT_EQ(error_of({1, 2}, {1, 2}).snr_db(), infinite);
  EXPECT_EQ(error_of({0, 0}, {0, 0}).snr_db(), infinite);
  EXPECT_EQ(error_of({0, 0}, {0, 1}).snr_db(), -infinite);
  const QuantizationError none;
  EXPECT_EQ(none.mse(), 0);
  EXPECT_EQ(none.mae(), 0);
  EXPECT_EQ(none.snr_db(), infinite);
  // The squares of float's extremes are within double.
  constexpr float largest = std::numeric_limits<float>::max();
  EXPECT_EQ(error_of({largest}, {-largest}).squared, 4 * static_cast<double>(largest) * static_cast<double>(largest));
  EXPECT_GT(error_of({1e-45F}, {0}).squared, 0);
}

TEST(QuantizationError, OfTensorsAddsUp) {
  QuantizationError sum = error_of({1, 2}, {0, 0});
  sum += error_of({3}, {4});
  EXPECT_EQ(sum.weights, 3);
  EXPECT_EQ(sum.squared, 6);
  EXPECT_EQ(sum.absolute, 4);
  EXPECT_EQ(sum.signal, 14);
}

TEST(QuantizationError, IsTheSameForAnyNumberOfThreads) {
  Random random(1);
  std::vector<float> original;
  std::vector<float> quantized;
  for (int i = 0; i < 3 * 65536 + 17; ++i) {
    original.push_back(random.uniform());
    quantized.push_back(random.uniform());
  }
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const QuantizationError one = error_of(original, quantized);
  omp_set_num_threads(5);
  const QuantizationError five = error_of(original, quantized);
  omp_set_num_threads(threads);
  EXPECT_EQ(one.squared, five.squared);
  EXPECT_EQ(one.absolute, five.absolute);
  EXPECT_EQ(one.signal, five.signal);
  EXPECT_NEAR(one.mse(), 1.0 / 6, 1e-2);  // of two uniform numbers
}

TEST(QuantizationError, RefusesOtherShapes) {
  const std::vector<float> values(4);
  EXPECT_THROW(quantization_error({values.data(), {4}}, {values.data(), {2, 2}}), ShapeError);
}

}  // namespace
}  // namespace nibblenet
