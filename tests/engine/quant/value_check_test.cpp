#include "engine/quant/value_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/packed_tensor.h"

namespace nibblenet {
namespace {

std::vector<float> random_weights(const Shape& shape, uint64_t seed) {
  std::vector<float> weights(static_cast<size_t>(shape.elements()));
  Random random(seed);
  for (float& weight : weights) weight = random.uniform() - 0.5F;
  return weights;
}

ValueCheck check(const std::vector<float>& weights, const Shape& shape) {
  return check_values({weights.data(), shape}, "w");
}

std::vector<float> decoded(const std::vector<float>& weights, const Shape& shape, const Scheme& scheme) {
  std::vector<float> values(weights.size());
  dequantize(quantize({weights.data(), shape}, scheme, "w"), {values.data(), shape});
  return values;
}

TEST(ValueCheck, CountsValuesOfTensorChannelsAndRows) {
  // Two channels of two rows: 0 and -0 are one value.
  const ValueCheck counts = check({1, 2, 0, 3, 4, -0.0F, 5, 5, 5, 6, 6, 7}, {2, 1, 2, 3});
  EXPECT_EQ(counts.weights, 12);
  EXPECT_EQ(counts.tensor.groups, 1);
  EXPECT_EQ(counts.tensor.most, 8);  // 0 … 7
  EXPECT_EQ(counts.tensor.bits, 3);
  EXPECT_EQ(counts.tensor.bytes, 12 * 3 / 8.0 + 4 * 8);
  EXPECT_EQ(counts.channel.groups, 2);
  EXPECT_EQ(counts.channel.most, 5);
  EXPECT_EQ(counts.channel.bits, 3);
  EXPECT_EQ(counts.channel.bytes, 6 * 3 / 8.0 + 4 * 5 + 6 * 2 / 8.0 + 4 * 3);
  EXPECT_EQ(counts.row.groups, 4);
  EXPECT_EQ(counts.row.most, 3);
  EXPECT_EQ(counts.row.bytes, 2 * (3 * 2 / 8.0 + 4 * 3) + (0 + 4) + (3 * 1 / 8.0 + 4 * 2));
}

TEST(ValueCheck, FloatsTakeFloat32) {
  const Shape shape{8, 100};
  const ValueCheck floats = check(random_weights(shape, 1), shape);
  EXPECT_FALSE(floats.scheme);
  EXPECT_EQ(floats.stored_as(), "float32");
  EXPECT_EQ(floats.bytes(), 4 * 800);
}

TEST(ValueCheck, FindsTheSchemeThatDecodedTheValues) {
  const Shape matrix{6, 300}, filters{6, 4, 5, 5};
  for (const char* text :
       {"linear:4:channel", "linear:3:tensor", "linear:8:row", "linear:4:block:64", "linear:4:channel:f16",
        "linear:4:channel:zero-point", "nf4:4:block:16", "fp4:4:channel", "fp8-e4m3:8:row", "dynamic-tree:5:row"}) {
    for (const Shape& shape : {matrix, filters}) {
      const Scheme scheme = parse_scheme(text);
      const std::vector<float> values = decoded(random_weights(shape, 7), shape, scheme);
      const ValueCheck found = check(values, shape);
      ASSERT_TRUE(found.scheme) << text << " " << to_string(shape);
      // A cheaper one may do as well; it must give the same values.
      EXPECT_LE(found.scheme_bytes, static_cast<int64_t>(4 * values.size())) << text;
      EXPECT_LE(found.scheme->bits, scheme.bits) << text << " " << to_string(*found.scheme);
    }
  }
}

/// A fake quantizer as notebooks write it: signed codes from `low` to `high`, of the step's
/// multiples.
struct FakeQuantizer {
  const char* name;
  int low;
  int high;
  bool by_channel;
  int bits;  ///< of the scheme that reproduces it
};
void PrintTo(const FakeQuantizer& quantizer, std::ostream* out) { *out << quantizer.name; }
class ValueCheckOfFake : public ::testing::TestWithParam<FakeQuantizer> {};

TEST_P(ValueCheckOfFake, IsReproduced) {
  const FakeQuantizer& fake = GetParam();
  const Shape shape{5, 203};
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    std::vector<float> weights = random_weights(shape, seed);
    const size_t group = fake.by_channel ? 203 : weights.size();
    for (size_t first = 0; first < weights.size(); first += group) {
      float largest = 0;
      for (size_t i = first; i < first + group; ++i) largest = std::max(largest, std::fabs(weights[i]));
      const float step = largest / static_cast<float>(fake.high);
      for (size_t i = first; i < first + group; ++i)
        weights[i] =
            std::clamp(std::nearbyint(weights[i] / step), static_cast<float>(fake.low), static_cast<float>(fake.high)) *
            step;
    }
    const ValueCheck found = check(weights, shape);
    ASSERT_TRUE(found.scheme) << "seed " << seed;
    EXPECT_EQ(found.scheme->method, Method::linear);
    EXPECT_EQ(found.scheme->bits, fake.bits) << to_string(*found.scheme);
    EXPECT_EQ(found.stored_as(), to_string(*found.scheme));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ValueCheckOfFake,
                         ::testing::Values(FakeQuantizer{"symmetric_4_by_channel", -7, 7, true, 4},
                                           FakeQuantizer{"symmetric_4_by_tensor", -7, 7, false, 4},
                                           FakeQuantizer{"full_range_4_by_channel", -8, 7, true, 4},
                                           FakeQuantizer{"symmetric_8_by_tensor", -127, 127, false, 8},
                                           FakeQuantizer{"symmetric_6_by_channel", -31, 31, true, 6}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(ValueCheck, TablesServeValuesOfNoScheme) {
  // Four values without any order, all over the tensor.
  const std::vector<float> table = {0.1F, 0.37F, -0.2141F, 0.9F};
  std::vector<float> weights(4000);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = table[random_bits(3, 0, i) % 4];
  const ValueCheck found = check(weights, {40, 100});
  EXPECT_FALSE(found.scheme);
  EXPECT_EQ(found.stored_as(), "table by tensor");
  EXPECT_EQ(found.bytes(), 4000 * 2 / 8.0 + 16);
}

TEST(ValueCheck, TellsHowFarItIsAndStopsWhenToldTo) {
  const Shape shape{3, 1 << 19};
  const std::vector<float> weights(static_cast<size_t>(shape.elements()), 1.0F);
  std::vector<int64_t> done;
  check_values({weights.data(), shape}, "w", [&](int64_t counted, int64_t total) {
    EXPECT_EQ(total, shape.elements());
    done.push_back(counted);
  });
  EXPECT_EQ(done.front(), 0);
  EXPECT_EQ(done.back(), shape.elements());
  EXPECT_TRUE(std::ranges::is_sorted(done));
  const auto stop = [](int64_t, int64_t) { throw UsageError("enough"); };
  EXPECT_THROW(check_values({weights.data(), shape}, "w", stop), UsageError);
}

TEST(ValueCheck, RefusesWhatIsNoWeightTensor) {
  EXPECT_THROW(check({1, std::numeric_limits<float>::quiet_NaN()}, {1, 2}), Error);
  EXPECT_THROW(check({1, std::numeric_limits<float>::infinity()}, {1, 2}), Error);
  EXPECT_THROW(check({1, 2}, {2}), ShapeError);
  EXPECT_THROW(check({}, {0, 2}), ShapeError);
}

TEST(ValueCheck, ZerosAreOneValue) {
  const ValueCheck zeros = check(std::vector<float>(64), {8, 8});
  EXPECT_EQ(zeros.tensor.most, 1);
  EXPECT_EQ(zeros.tensor.bits, 0);
  EXPECT_EQ(zeros.stored_as(), "table by tensor");
  EXPECT_EQ(zeros.bytes(), 4);
}

}  // namespace
}  // namespace nibblenet
