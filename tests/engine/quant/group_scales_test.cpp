#include "engine/quant/group_scales.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/core/random.h"
#include "tests/engine/quant/cases.h"

namespace nibblenet {
namespace {

std::vector<float> heavy_tailed(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    const float u = 2 * random.uniform() - 1;
    values.push_back(u * u * u * u * u);
  }
  return values;
}

/// Sum of importance (weight - value)^2; importance by the index within the channel.
double error_of(const PackedTensor& packed, const std::vector<float>& weights, const std::vector<float>& importance) {
  std::vector<float> values(weights.size());
  dequantize(packed, {values.data(), packed.shape});
  const auto inner = static_cast<size_t>(packed.shape.inner_elements());
  double error = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    error += (importance.empty() ? 1.0 : static_cast<double>(importance[i % inner])) *
             std::pow(static_cast<double>(weights[i]) - static_cast<double>(values[i]), 2);
  return error;
}

Hessian diagonal_hessian(const std::vector<float>& squares) {
  const auto n = static_cast<int64_t>(squares.size());
  Hessian hessian{.inputs = n, .values = std::vector<float>(squares.size() * squares.size())};
  for (size_t i = 0; i < squares.size(); ++i) hessian.values[i * squares.size() + i] = squares[i];
  return hessian;
}

class RangeSearch : public ::testing::TestWithParam<MethodTraits> {};

TEST_P(RangeSearch, NeverLeavesMoreErrorThanTheMaximumAndIsValid) {
  for (const Shape& shape : {Shape{17, 65}, Shape{5, 5, 3, 3}, Shape{1, 1}}) {
    const std::vector<float> weights = heavy_tailed(shape.elements(), 1);
    std::vector<float> squares;
    for (int64_t k = 0; k < shape.inner_elements(); ++k) squares.push_back(static_cast<float>(k % 5));
    const Hessian hessian = diagonal_hessian(squares);
    for (const Hessian* known : {static_cast<const Hessian*>(nullptr), &hessian})
      for (const Scheme& scheme : testing::schemes_of(GetParam())) {
        SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
        const std::vector<float> importance = known == nullptr ? std::vector<float>{} : squares;
        const TensorView<const float> view{weights.data(), shape};
        const PackedTensor whole = quantize(view, scheme, "w", {.hessian = known});
        const PackedTensor searched = quantize(view, scheme, "w", {.range = Range::search, .hessian = known});
        ASSERT_NO_THROW(validate(searched, "w"));
        ASSERT_LE(error_of(searched, weights, importance), error_of(whole, weights, importance) * (1 + 1e-9));
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, RangeSearch, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& method) { return testing::identifier(method.param.name); });

TEST(RangeSearchOfOneGroup, TakesTheBestOfTheGrid) {
  const std::vector<float> weights = heavy_tailed(200, 2);
  const Scheme scheme = parse_scheme("linear:3");
  const TensorView<const float> view{weights.data(), {1, 200}};
  float largest = 0;
  for (const float w : weights) largest = std::max(largest, std::fabs(w));
  double best = INFINITY;
  for (int i = 0; i <= 32; ++i) {
    const float step = largest * (1.0F - 0.8F * static_cast<float>(i) / 32) / 3;
    double error = 0;
    for (const float w : weights) {
      const float value = std::clamp(std::nearbyint(w / step), -3.0F, 3.0F) * step;
      error += std::pow(static_cast<double>(w) - static_cast<double>(value), 2);
    }
    best = std::min(best, error);
  }
  EXPECT_DOUBLE_EQ(error_of(quantize(view, scheme, "w", {.range = Range::search}), weights, {}), best);
}

TEST(RangeSearchOfOneGroup, WeighsErrorsByTheInputs) {
  // An outlier behind an input that is always 0 claims no range.
  const std::vector<float> weights = {10.0F, 1.0F, -0.4F, 0.3F, 0.7F};
  const Hessian hessian = diagonal_hessian({0, 1, 1, 1, 1});
  const PackedTensor packed =
      quantize({weights.data(), {1, 5}}, parse_scheme("linear:4"), "w", {.range = Range::search, .hessian = &hessian});
  EXPECT_LE(packed.scale(0), 2.5F);
  EXPECT_EQ(quantize({weights.data(), {1, 5}}, parse_scheme("linear:4"), "w", {.hessian = &hessian}).scale(0), 10.0F);
}

/// Factors above 1 take a scale near the end of its type's range to infinity: no choice, and no
/// reason to refuse the tensor.
TEST(RangeSearchNearTheEndOfAType, PassesOverScalesBeyondIt) {
  for (const auto& [name, largest] : {std::pair{"kmeans:3:channel:f16", 60000.0F}, {"kmeans:3", 3e38F}})
    for (const Shape& shape : {Shape{3, 50}, Shape{70, 50}}) {  // threads share factors, and groups
      SCOPED_TRACE(fmt::format("{} of {}", name, to_string(shape)));
      std::vector<float> weights = heavy_tailed(shape.elements(), 4);
      for (int64_t row = 0; row < shape[0]; ++row) weights[static_cast<size_t>(row * 50)] = -1;
      for (float& weight : weights) weight *= largest;
      const TensorView<const float> view{weights.data(), shape};
      const PackedTensor searched = quantize(view, parse_scheme(name), "w", {.range = Range::search});
      for (int64_t row = 0; row < shape[0]; ++row) EXPECT_TRUE(std::isfinite(searched.scale(row))) << row;
      EXPECT_LE(error_of(searched, weights, {}),
                error_of(quantize(view, parse_scheme(name), "w"), weights, {}) * (1 + 1e-9));
    }
}

TEST(TrainedValues, OfManyWeightsComeFromAFixedSample) {
  // More than 4 million weights: the same codebook every time, close to that of all.
  const Shape shape{2100, 2000};
  std::vector<float> weights(static_cast<size_t>(shape.elements()));
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(mix64(i) >> 40) * 0x1p-23F - 1.0F;
  const PackedTensor packed = quantize({weights.data(), shape}, parse_scheme("kmeans:2:tensor"), "w");
  const PackedTensor again = quantize({weights.data(), shape}, parse_scheme("kmeans:2:tensor"), "w");
  EXPECT_EQ(packed.codebook, again.codebook);
  // Uniform weights have the values ±1/4 and ±3/4. With half a million weights each, means are off
  // by 2e-4, neighbouring values add to that, and values are multiples of at most 1.5 127ths of the
  // largest.
  const std::vector<float> expected = {-0.75F, -0.25F, 0.25F, 0.75F};
  for (size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(packed.codebook[i] * packed.scale(0), expected[i], 4e-3F + 1.5F * 0.75F / 254.0F);
}

TEST(StepRange, ValuesLieThatManyDeviationsApartAndNothingIsClipped) {
  const std::vector<float> weights = {1, -1, 1, -1,  // a root mean square of 1
                                      3, -3, 3, 3,   // of 3
                                      0, 0,  0, 0,
                                      8, 0,  0, 0};  // of 4: the three steps of 2 that there are do not reach 8
  const TensorView<const float> view{weights.data(), {4, 4}};
  const PackedTensor packed = quantize(view, parse_scheme("linear:3"), "w", {.range = Range::step, .deviations = 0.5F});
  const Codebook codebook = codebook_of(packed);
  const PackedView steps = view_of(packed, codebook);
  EXPECT_FLOAT_EQ(steps.step(0), 0.5F);
  EXPECT_FLOAT_EQ(steps.step(1), 1.5F);
  EXPECT_EQ(steps.step(2), 0.0F);
  EXPECT_FLOAT_EQ(steps.step(3), 8.0F / 3) << "the outermost code stands for the largest weight";
  std::vector<float> values(weights.size());
  dequantize(packed, {values.data(), packed.shape});
  for (size_t i = 0; i < weights.size(); ++i)
    EXPECT_LE(std::fabs(weights[i] - values[i]), 0.5001F * steps.step(static_cast<int64_t>(i) / 4)) << i;
}

TEST(StepRange, IsRefusedWhereThereIsNone) {
  const std::vector<float> weights = {1, 2, 3, 4};
  const TensorView<const float> view{weights.data(), {1, 4}};
  for (const char* scheme : {"kmeans:3", "nf4", "linear:3:channel:zero-point"})
    EXPECT_THROW(quantize(view, parse_scheme(scheme), "w", {.range = Range::step, .deviations = 1}), UsageError);
  for (const float step : {0.0F, -1.0F, INFINITY, NAN})
    EXPECT_THROW(quantize(view, parse_scheme("linear:3"), "w", {.range = Range::step, .deviations = step}), UsageError);
  EXPECT_THROW(quantize(view, parse_scheme("linear:3"), "w", {.rate_weight = 1}), UsageError);
}

TEST(StepRange, LargestDeviationIsThatOfTheGroupWhereItIsMost) {
  const std::vector<float> weights = {1, -1, 1, 1, 0, 0, 0, 0, 0, -4, 0, 0};
  EXPECT_FLOAT_EQ(largest_deviation({weights.data(), {3, 4}}, parse_granularity("channel")), 2.0F);
  const std::vector<float> zeros(4);
  EXPECT_EQ(largest_deviation({zeros.data(), {1, 4}}, parse_granularity("channel")), 0.0F);
}

}  // namespace
}  // namespace nibblenet
