#include "engine/quant/byte_values.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "engine/core/random.h"

namespace nibblenet {
namespace {

/// Weights of a normal distribution, packed, and their view.
struct Packed {
  PackedTensor tensor;
  Codebook codebook;
  PackedView view;

  Packed(const std::string& scheme, const Shape& shape) {
    Tensor<float> weights(host_memory(), shape, MemoryCategory::data);
    Random random(1);
    for (float& weight : weights.view()) {
      weight = -6.0F;
      for (int i = 0; i < 12; ++i) weight += random.uniform();
    }
    tensor = quantize(std::as_const(weights).view(), parse_scheme(scheme), "w");
    codebook = codebook_of(tensor);
    view = view_of(tensor, codebook);
  }
};

TEST(ByteValues, KeepWholeNumbers) {
  for (int bits = 2; bits <= 8; ++bits) {
    const Packed packed(fmt::format("linear:{}:channel", bits), {8, 100});
    const ByteValues values = byte_values(packed.view);
    EXPECT_EQ(values.unit, 1.0F);
    EXPECT_EQ(values.error, 0.0);
    for (size_t code = 0; code < size_t{1} << bits; ++code)
      EXPECT_EQ(static_cast<float>(values.bytes[code]), packed.view.values[code]) << bits << " bits, code " << code;
  }
}

TEST(ByteValues, KeepTrainedValuesOfUpToFourBits) {
  for (int bits = 2; bits <= 4; ++bits) {
    const Packed packed(fmt::format("kmeans:{}:channel", bits), {64, 1000});
    EXPECT_LT(byte_values(packed.view).error, 1e-7) << bits;
  }
}

TEST(ByteValues, OfFiltersFitInSumsOfThree) {
  for (const Shape& shape : {Shape{64, 8, 3, 3}, Shape{64, 4, 5, 5}, Shape{64, 12, 1, 3}})
    for (int bits = 2; bits <= 4; ++bits) {
      const Packed packed(fmt::format("kmeans:{}:channel", bits), shape);
      const ByteValues values = byte_values(packed.view);
      EXPECT_TRUE(may_sum_columns(shape));
      EXPECT_LT(values.error, 1e-7) << bits;
      EXPECT_TRUE(are_summands(packed.view, values)) << bits;
    }
  for (const Shape& shape : {Shape{64, 6, 3, 3}, Shape{64, 8, 1, 1}, Shape{64, 8, 3, 7}, Shape{64, 72}})
    EXPECT_FALSE(may_sum_columns(shape)) << to_string(shape);
}

TEST(ByteValues, OfLinearCodesFitInSumsOfThreeUpToSixBits) {
  const auto fit = [](const std::string& scheme) {
    const Packed packed(scheme, {8, 100});
    return are_summands(packed.view, byte_values(packed.view));
  };
  EXPECT_TRUE(fit("linear:6:channel"));
  EXPECT_FALSE(fit("linear:7:channel"));
  EXPECT_TRUE(fit("linear:5:channel:zero-point"));
  EXPECT_FALSE(fit("linear:6:channel:zero-point"));
}

/// What rounding to fewer multiples adds to the error of weights is small: 2 % here.
TEST(ByteValues, OfFiltersCostLittle) {
  const auto error_of = [](const Shape& shape) {
    const Packed packed("kmeans:4:channel", shape);
    Tensor<float> rounded(host_memory(), shape, MemoryCategory::data);
    dequantize(packed.tensor, rounded.view());
    double squares = 0;
    Random random(1);
    for (const float value : rounded.view()) {
      double weight = -6;
      for (int i = 0; i < 12; ++i) weight += static_cast<double>(random.uniform());
      squares += (weight - static_cast<double>(value)) * (weight - static_cast<double>(value));
    }
    return squares;
  };
  EXPECT_LT(error_of({64, 64, 3, 3}), 1.05 * error_of({64, 576}));
}

TEST(ByteValues, RoundOthersSoThatSumsChangeLittle) {
  const Packed packed("nf4:4:channel", {64, 1000});
  const ByteValues values = byte_values(packed.view);
  EXPECT_GE(values.unit, 1.0F / 127.0F);
  EXPECT_LT(values.unit, 1.0F / 64.0F);
  double worst = 0;
  for (size_t code = 0; code < 16; ++code)
    worst = std::max(worst, std::abs(static_cast<double>(values.unit) * values.bytes[code] -
                                     static_cast<double>(packed.view.values[code])));
  EXPECT_LE(worst, 0.5 * static_cast<double>(values.unit) * (1 + 1e-6));
  EXPECT_GT(values.error, 0.0);
  EXPECT_LT(values.error, largest_byte_error);
  EXPECT_EQ(why_not_bytes(packed.view), "");
}

TEST(ByteValues, HaveAReasonWhereThereAreNone) {
  const auto reason = [](const std::string& scheme, const Shape& shape) {
    return why_not_bytes(Packed(scheme, shape).view);
  };
  EXPECT_EQ(reason("linear:4:block:16", {8, 100}), "its scales change along a channel");
  EXPECT_EQ(reason("linear:4:row", {8, 4, 3, 3}), "its scales change along a channel");
  EXPECT_EQ(reason("stable-embedding", {64, 100}), "its scales belong to sorted blocks");
  EXPECT_EQ(reason("trellis:2", {64, 100}), "its codes are trellis strings");
  EXPECT_EQ(reason("linear:8:channel:zero-point", {8, 100}), "8 bits with a zero point do not fit a signed byte");
  EXPECT_EQ(reason("linear:4:channel", {1, most_byte_products + 1}), "a 32-bit sum holds 65536 products of bytes");
  EXPECT_EQ(reason("linear:4:channel", {1, most_byte_products}), "");
  EXPECT_EQ(reason("linear:4:row", {8, 100}), "");  // a row of a matrix is a channel
  EXPECT_EQ(reason("linear:4:block:100", {8, 100}), "");
  EXPECT_EQ(reason("linear:7:channel:zero-point", {8, 100}), "");
}

}  // namespace
}  // namespace nibblenet
