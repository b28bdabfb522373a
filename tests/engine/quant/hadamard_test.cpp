#include "engine/quant/hadamard.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/quant/quantizer.h"
#include "tests/engine/quant/hessians.h"
#include "tests/engine/quant/normal_numbers.h"

namespace nibblenet {
namespace {

using testing::correlated_hessian;
using testing::error_under;
using ::testing::HasSubstr;
using testing::normal;
using testing::squares;
using ::testing::ThrowsMessage;

/// Entry of the Hadamard matrix in its natural order (Sylvester's).
double sign(int64_t row, int64_t column) {
  return std::popcount(static_cast<uint64_t>(row & column)) % 2 == 0 ? 1 : -1;
}

TEST(Hadamard, BlocksAreTheLargestThatFit) {
  EXPECT_EQ(hadamard_block(64), 64);
  EXPECT_EQ(hadamard_block(192), 64);
  EXPECT_EQ(hadamard_block(384), 128);
  EXPECT_EQ(hadamard_block(9216), 256);
  EXPECT_EQ(hadamard_block(24), 8);
  EXPECT_EQ(hadamard_block(int64_t{1} << 40), 256);
  for (const int64_t channels : {-8, 0, 1, 3, 4, 12, 1001}) EXPECT_EQ(hadamard_block(channels), 0) << channels;
}

TEST(Hadamard, IsAProductWithTheMatrix) {
  for (const int64_t block : {8, 16, 32, 64, 128, 256})
    for (const int64_t stride : {1, 3, 25}) {
      const std::vector<float> x = normal(static_cast<size_t>(3 * block * stride), 1);
      std::vector<float> y = x;
      hadamard_transform(y, {block, stride});
      for (int64_t i = 0; i < static_cast<int64_t>(y.size()); ++i) {
        const int64_t first = i / (block * stride) * (block * stride) + i % stride;
        double sum = 0;
        for (int64_t j = 0; j < block; ++j)
          sum +=
              sign(i % (block * stride) / stride, j) * static_cast<double>(x[static_cast<size_t>(first + j * stride)]);
        ASSERT_NEAR(y[static_cast<size_t>(i)], sum / std::sqrt(static_cast<double>(block)), 1e-5)
            << block << ", stride " << stride << ", value " << i;
      }
    }
}

Tensor<float> weights_of(const Shape& shape, const std::vector<float>& values) {
  Tensor<float> weights(host_memory(), shape, MemoryCategory::data);
  std::ranges::copy(values, weights.data());
  return weights;
}

Tensor<float> turned(const Tensor<float>& weights, const Scheme& scheme) {
  Tensor<float> copy = weights_of(weights.shape(), {weights.data(), weights.data() + weights.elements()});
  hadamard_transform(copy.view().span(), rotation_of_weights(scheme, weights.shape()));
  return copy;
}

Tensor<float> decoded(const PackedTensor& packed) {
  Tensor<float> values(host_memory(), packed.shape, MemoryCategory::data);
  dequantize(packed, values.view());
  return values;
}

bool same_bits(const Tensor<float>& a, const Tensor<float>& b) {
  return a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.view().span().size_bytes()) == 0;
}

/// Every method but those of sorted weights, with every part of the scheme's text.
std::vector<Scheme> rotated_schemes() {
  std::vector<Scheme> all = {parse_scheme("linear:4:channel:zero-point:rotated"),
                             parse_scheme("linear:5:block:5:f16:signed:rotated"), parse_scheme("trellis:0.75:rotated"),
                             parse_scheme("kmeans:2:channel:rotated:3")};
  for (const MethodTraits& traits : method_table()) {
    if (traits.sorted) continue;
    Scheme scheme = default_scheme(traits.method, traits.max_bits);
    scheme.rotated = 1;
    all.push_back(scheme);
  }
  return all;
}

TEST(RotatedWeights, CodesAreThoseOfTheWeightsTurnedAndDecodingTurnsThemBack) {
  for (const Scheme& scheme : rotated_schemes())
    for (const Shape& shape : {Shape{70, 24}, Shape{5, 16, 3, 3}}) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      if (scheme.rotated > 1 && shape.rank() > 2) continue;
      const Tensor<float> weights = weights_of(shape, normal(static_cast<size_t>(shape.elements()), 5));
      const PackedTensor packed = quantize(weights.view(), scheme, "w");
      EXPECT_NO_THROW(validate(packed, "w"));
      EXPECT_EQ(parse_scheme(to_string(scheme)), scheme);
      Scheme without = scheme;
      without.rotated = 0;
      const PackedTensor plain = quantize(turned(weights, scheme).view(), without, "w");
      EXPECT_EQ(packed.codes, plain.codes);
      EXPECT_EQ(packed.scales, plain.scales);
      EXPECT_EQ(packed.codebook, plain.codebook);
      EXPECT_TRUE(same_bits(decoded(packed), turned(decoded(plain), scheme)));
    }
}

/// What rotation is for: a few large weights no longer set the scale of all.
TEST(RotatedWeights, HaveSmallerErrorsWhereWeightsAreNotNormal) {
  const Shape shape{64, 256};
  std::vector<float> values = normal(static_cast<size_t>(shape.elements()), 5);
  for (float& value : values) value = value * value * value;
  const Tensor<float> weights = weights_of(shape, values);
  for (const std::string scheme : {"trellis:2", "linear:4:channel", "kmeans:3:channel"}) {
    const auto error = [&](const std::string& text) {
      const Tensor<float> rounded = decoded(quantize(weights.view(), parse_scheme(text), "w"));
      std::vector<float> difference = values;
      for (size_t i = 0; i < difference.size(); ++i) difference[i] -= rounded.data()[i];
      return squares(difference);
    };
    EXPECT_LT(error(scheme + ":rotated"), 0.7 * error(scheme)) << scheme;
  }
}

TEST(RotatedWeights, TheHessianIsThatOfRotatedInputs) {
  constexpr int64_t rows = 50, taps = 3, channels = 24;
  std::vector<float> x = normal(rows * channels * taps, 3);
  const auto hessian_of = [&](const std::vector<float>& inputs) {
    HessianAccumulator accumulator(channels * taps);
    accumulator.add({inputs.data(), {rows, channels * taps}});
    return std::move(accumulator).finish();
  };
  const Rotation rotation = rotation_of_weights(parse_scheme("trellis:2:channel:rotated:3"), {1, channels * taps});
  EXPECT_EQ(rotation.block, 8);
  EXPECT_EQ(rotation.stride, taps);
  const Hessian actual = rotated(hessian_of(x), rotation);
  hadamard_transform(x, rotation);
  const Hessian expected = hessian_of(x);
  for (int64_t i = 0; i < expected.inputs; ++i)
    for (int64_t j = 0; j < expected.inputs; ++j) {
      ASSERT_NEAR(actual.at(i, j), expected.at(i, j), 1e-5) << i << ", " << j;
      ASSERT_EQ(actual.at(i, j), actual.at(j, i)) << i << ", " << j;
    }
}

/// GPTQ lowers the error of the outputs, which is the same in both bases.
TEST(RotatedWeights, GptqSeesTheInputsRotated) {
  const Shape shape{64, 48};
  const std::vector<float> weights = normal(static_cast<size_t>(shape.elements()), 9);
  const Hessian hessian = correlated_hessian(48, 400, 4);
  for (const std::string scheme : {"linear:3:channel:rotated", "trellis:1.5:channel:rotated"}) {
    GptqReport report;
    const PackedTensor packed = quantize({weights.data(), shape}, parse_scheme(scheme), "w",
                                         {.rounding = Rounding::gptq, .hessian = &hessian, .report = &report});
    EXPECT_NEAR(report.error, error_under(packed, weights, hessian), 1e-3 * report.error) << scheme;
    EXPECT_LT(report.error, 0.8 * report.nearest_error) << scheme;
    const Hessian turned_hessian = rotated(hessian, rotation_of_weights(parse_scheme(scheme), shape));
    const HessianFactor factor = factorize(turned_hessian, ColumnOrder::natural);
    const PackedTensor by_factor = quantize({weights.data(), shape}, parse_scheme(scheme), "w",
                                            {.rounding = Rounding::gptq, .hessian = &hessian, .factor = &factor});
    EXPECT_EQ(by_factor.codes, packed.codes) << scheme;
  }
}

TEST(RotatedWeights, ChannelsThatCannotBeRotatedAreRefused) {
  const Scheme scheme = parse_scheme("linear:4:channel:rotated"),
               by_threes = parse_scheme("linear:4:channel:rotated:3");
  const Tensor<float> weights = weights_of({4, 10}, normal(40, 1));
  EXPECT_THAT([&] { quantize(weights.view(), scheme, "features.0.weight"); },
              ThrowsMessage<ShapeError>(HasSubstr("features.0.weight: linear:4:channel:rotated needs a multiple of 8 "
                                                  "input channels, and the weights are 4x10")));
  PackedTensor packed = quantize(weights.view(), parse_scheme("linear:4:channel"), "w");
  for (const int64_t inputs : {int64_t{1}, int64_t{3}, INT64_MAX}) {
    packed.scheme.rotated = inputs;
    EXPECT_THAT([&] { validate(packed, "w"); }, ThrowsMessage<FormatError>(HasSubstr("multiple of 8 input channels")));
  }
  EXPECT_FALSE(rotated_where_possible(scheme, {4, 10}).is_rotated());
  EXPECT_TRUE(rotated_where_possible(scheme, {4, 16, 3, 3}).is_rotated());
  EXPECT_FALSE(rotated_where_possible(by_threes, {4, 16, 3, 3}).is_rotated())
      << "channels of filters are single inputs";
  EXPECT_TRUE(rotated_where_possible(by_threes, {4, 24}).is_rotated());
  EXPECT_FALSE(rotated_where_possible(by_threes, {4, 16}).is_rotated());
}

TEST(RotatedWeights, ScalesThatOverflowWhenTurnedBackAreRefused) {
  PackedTensor packed = quantize(weights_of({1, 256}, std::vector<float>(256, 1.0F)).view(),
                                 parse_scheme("linear:8:channel:rotated"), "w");
  const float scale = 1e37F;
  std::memcpy(packed.scales.data(), &scale, sizeof(scale));
  EXPECT_THAT([&] { validate(packed, "w"); }, ThrowsMessage<FormatError>(HasSubstr("decodes to infinite weights")));
  packed.scheme.rotated = 0;
  EXPECT_NO_THROW(validate(packed, "w"));
}

TEST(RotatedWeights, TextsOfSchemesSayTheInputsOfAChannel) {
  EXPECT_EQ(parse_scheme("trellis:2:channel:rotated").rotated, 1);
  EXPECT_EQ(parse_scheme("trellis:2:rotated:36").rotated, 36);
  EXPECT_EQ(to_string(parse_scheme("trellis:2:f16:rotated:36")), "trellis:2:channel:f16:rotated:36");
  EXPECT_EQ(to_string(parse_scheme("linear:4:rotated:1")), "linear:4:channel:rotated");
  for (const std::string text : {"trellis:2:rotated:0", "trellis:2:rotated:-8", "trellis:2:rotated:x",
                                 "trellis:2:rotated:36:36", "trellis:2:rotated:99999999999999999999"})
    EXPECT_THROW(parse_scheme(text), UsageError) << text;
}

TEST(RotatedWeights, SortedMethodsHaveNone) {
  EXPECT_THAT([] { parse_scheme("stable-embedding:4:sorted:rotated"); },
              ThrowsMessage<UsageError>(HasSubstr("does not support rotated")));
}

}  // namespace
}  // namespace nibblenet
