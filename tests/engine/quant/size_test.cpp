#include "engine/quant/size.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "engine/quant/bits.h"
#include "tests/engine/quant/cases.h"

namespace nibblenet {
namespace {

constexpr double megabyte = 1e6;

EstimatedSize alexnet_estimate(const std::string& scheme) {
  EstimatedSize total;
  for (const Shape& shape : testing::alexnet_weights) {
    const EstimatedSize size = estimated_size(parse_scheme(scheme), shape);
    total.codes += size.codes;
    total.scales += size.scales;
  }
  return total;
}

int64_t alexnet_groups(const std::string& granularity) {
  int64_t groups = 0;
  for (const Shape& shape : testing::alexnet_weights)
    groups += make_group_map(parse_granularity(granularity), shape).groups;
  return groups;
}

TEST(EstimatedSize, IsTheNotebooksFormulaForAlexNet) {
  int64_t weights = 0;
  for (const Shape& shape : testing::alexnet_weights) weights += shape.elements();
  EXPECT_EQ(weights, 44421824);
  EXPECT_EQ(alexnet_groups("row"), 781386);
  EXPECT_EQ(alexnet_groups("channel"), 6282);
  EXPECT_EQ(alexnet_groups("tensor"), 8);

  EXPECT_DOUBLE_EQ(alexnet_estimate("dynamic-tree:8").codes / megabyte, 44.421824);
  EXPECT_DOUBLE_EQ(alexnet_estimate("dynamic-tree:8").scales / megabyte, 3.125544);
  EXPECT_DOUBLE_EQ(alexnet_estimate("dynamic-tree:3").codes / megabyte, 16.658184);
  EXPECT_DOUBLE_EQ(alexnet_estimate("dynamic-tree:3").total() / megabyte, 19.783728);
}

TEST(EstimatedSize, CountsScalesByTheirTypeAndForgetsZeroPoints) {
  EXPECT_DOUBLE_EQ(alexnet_estimate("linear:4").scales, 6282 * 4);
  EXPECT_DOUBLE_EQ(alexnet_estimate("linear:4:f16").scales, 6282 * 2);
  EXPECT_DOUBLE_EQ(alexnet_estimate("linear:4:f16:zero-point").scales, 6282 * 2);
  EXPECT_DOUBLE_EQ(alexnet_estimate("linear:4:zero-point").scales, 6282 * 4);
  EXPECT_THROW(alexnet_estimate("linear:9"), UsageError);
}

TEST(ResidentSize, CountsEveryByteOfEveryScheme) {
  for (const MethodTraits& traits : scalar_methods())
    for (const Shape& shape : testing::awkward_shapes) {
      const std::vector<float> weights(static_cast<size_t>(shape.elements()), 0.5F);
      for (const Scheme& scheme : testing::schemes_of(traits)) {
        SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
        const PackedTensor packed = quantize({weights.data(), shape}, scheme, "w");
        const ResidentSize size = resident_size(packed);
        const size_t vectors = packed.codes.size() + packed.scales.size() + packed.zero_points.size() +
                               packed.block_ids.size() + packed.codebook.size() * sizeof(float);
        ASSERT_EQ(size.total(), static_cast<int64_t>(vectors));
        const int64_t inner = shape.inner_elements();
        ASSERT_EQ(size.codes, shape[0] * packed_bytes(inner, scheme.bits));
        ASSERT_EQ(size.scales, packed.groups() * (scheme.scale == ScaleType::f16 ? 2 : 4));
        ASSERT_EQ(size.zero_points, scheme.zero_point ? packed.groups() : 0);
        ASSERT_EQ(size.block_ids > 0, traits.sorted);
        // Less than 16 bytes for each field of each channel, and less than a byte of that by
        // rounding up.
        ASSERT_GE(size.padding, 0);
        ASSERT_LT(size.padding, shape[0] * 16 * (traits.sorted ? 2 : 1));
        const EstimatedSize estimate = estimated_size(packed);
        ASSERT_EQ(estimate.scales, static_cast<double>(size.scales));
        ASSERT_LE(estimate.codes, static_cast<double>(size.codes));
        ASSERT_GT(estimate.codes + static_cast<double>(shape[0]), static_cast<double>(size.codes));
      }
    }
}

TEST(ResidentSize, ShowsWhatTheEstimateForgets) {
  // 64 blocks of 16: 6 bits a weight to know the block, beside 4 for the code.
  const Shape shape{16, 64};
  const std::vector<float> weights(1024, 1.0F);
  const PackedTensor packed = quantize({weights.data(), shape}, parse_scheme("stable-embedding:4"), "w");
  const ResidentSize size = resident_size(packed);
  EXPECT_EQ(size.codes, 512);
  EXPECT_EQ(size.block_ids, 768);
  EXPECT_EQ(size.scales, 256);
  EXPECT_EQ(size.padding, 0);
  EXPECT_EQ(estimated_size(packed).total(), 512.0 + 256.0);
}

TEST(SizeRow, SumsAndBitsPerWeight) {
  const SizeRow packed{
      .name = "features.0",
      .scheme = "linear:4:channel",
      .weights = 100,
      .groups = 2,
      .estimated = {50, 8},
      .resident = {.codes = 50, .scales = 8, .codebooks = 12, .block_ids = 5, .padding = 14, .biases = 8},
      .file = 200};
  EXPECT_DOUBLE_EQ(packed.bits_per_weight(), 6.0) << "neither padding nor biases are a weight's";
  const SizeRow plain{.name = "features.3",
                      .scheme = "float32",
                      .weights = 10,
                      .estimated = {40, 0},
                      .resident = {.biases = 4, .weights = 40},
                      .file = 44};
  EXPECT_DOUBLE_EQ(plain.bits_per_weight(), 32.0);

  const SizeRow total = sum({packed, plain}, "all");
  EXPECT_EQ(total.name, "all");
  EXPECT_EQ(total.scheme, "mixed");
  EXPECT_EQ(total.weights, 110);
  EXPECT_EQ(total.groups, 2);
  EXPECT_EQ(total.estimated.total(), 98.0);
  EXPECT_EQ(total.resident.total(), packed.resident.total() + plain.resident.total());
  EXPECT_EQ(total.file, 244);
  EXPECT_EQ(sum({packed, packed}, "all").scheme, "linear:4:channel");
  EXPECT_EQ(sum({}, "none").bits_per_weight(), 0.0);
}

}  // namespace
}  // namespace nibblenet
