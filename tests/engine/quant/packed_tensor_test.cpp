#include "engine/quant/packed_tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/bits.h"
#include "tests/engine/quant/fields.h"

namespace nibblenet {
namespace {

using ::testing::HasSubstr;

PackedTensor packed_example(const std::string& scheme, const Shape& shape = {5, 3, 3, 3}) {
  Random random(1);
  std::vector<float> weights;
  for (int64_t i = 0; i < shape.elements(); ++i) weights.push_back(random.uniform() - 0.5F);
  return quantize({weights.data(), shape}, parse_scheme(scheme), "w");
}

void set_scale(PackedTensor& packed, size_t group, float scale) {
  std::memcpy(packed.scales.data() + group * sizeof(float), &scale, sizeof(scale));
}

struct Corruption {
  std::string what;
  std::string scheme;
  std::function<void(PackedTensor&)> apply;
  std::string message;
};

const std::vector<Corruption> corruptions = {
    {"codes too short", "linear", [](PackedTensor& p) { p.codes.pop_back(); }, "expected 80 bytes of codes, got 79"},
    {"codes too long", "linear", [](PackedTensor& p) { p.codes.push_back(0); }, "expected 80 bytes of codes, got 81"},
    {"no codes", "linear", [](PackedTensor& p) { p.codes.clear(); }, "cannot hold"},
    {"scale missing", "linear", [](PackedTensor& p) { p.scales.resize(16); }, "expected 20 bytes of scales, got 16"},
    {"no scales", "linear", [](PackedTensor& p) { p.scales.clear(); }, "expected 20 bytes of scales, got 0"},
    {"a byte too many", "linear:4:f16", [](PackedTensor& p) { p.scales.push_back(0); }, "expected 10 bytes of scales"},
    {"f32 scales called f16", "linear", [](PackedTensor& p) { p.scheme.scale = ScaleType::f16; }, "bytes of scales"},
    {"NaN scale", "linear", [](PackedTensor& p) { set_scale(p, 2, std::numeric_limits<float>::quiet_NaN()); },
     "scale of group 2"},
    {"infinite scale", "nf4", [](PackedTensor& p) { set_scale(p, 1, -std::numeric_limits<float>::infinity()); },
     "scale of group 1"},
    {"infinite f16 scale", "linear:4:f16", [](PackedTensor& p) { p.scales[0] = 0, p.scales[1] = 0x7C; },
     "scale of group 0"},
    // 127 * (max / 127) rounds up, beyond float32's range.
    {"scale that decodes to infinity", "linear:8",
     [](PackedTensor& p) { set_scale(p, 0, std::numeric_limits<float>::max()); }, "decodes to infinite weights"},
    {"zero point missing", "linear:4:zero-point", [](PackedTensor& p) { p.zero_points.pop_back(); },
     "expected 5 zero points, got 4"},
    {"zero point too wide", "linear:4:zero-point", [](PackedTensor& p) { p.zero_points[3] = 16; },
     "zero point 16 does not fit 4 bits"},
    {"zero points of a symmetric scheme", "linear", [](PackedTensor& p) { p.zero_points.resize(5); },
     "expected 0 zero points, got 5"},
    {"block ids missing", "stable-embedding", [](PackedTensor& p) { p.block_ids.clear(); }, "bytes of block ids"},
    {"block ids too long", "stable-embedding", [](PackedTensor& p) { p.block_ids.resize(1000); }, "bytes of block ids"},
    {"block ids of an unsorted scheme", "linear", [](PackedTensor& p) { p.block_ids.resize(16); },
     "expected 0 bytes of block ids, got 16"},
    {"block id beyond the blocks", "stable-embedding",
     [](PackedTensor& p) {
       testing::write_field(p.block_ids.data() + 2 * p.block_id_stride(), 26, p.block_id_bits(), 31);
     },
     "block id 31 of a tensor of 27 blocks"},
    {"codebook of the wrong size", "linear", [](PackedTensor& p) { p.codebook.resize(15); },
     "expected 16 codebook values, got 15"},
    {"NaN in the codebook", "linear",
     [](PackedTensor& p) { p.codebook.assign(16, std::numeric_limits<float>::quiet_NaN()); }, "not finite"},
    {"codebook out of order", "linear",
     [](PackedTensor& p) {
       p.codebook.assign(16, 0.5F);
       p.codebook[15] = 0;
     },
     "ascending"},
    {"codebook of an affine scheme", "linear:4:zero-point", [](PackedTensor& p) { p.codebook.resize(16); },
     "zero-point"},
    {"width of another scheme", "linear:4", [](PackedTensor& p) { p.scheme.bits = 8; }, "bytes of codes"},
    {"no such width", "linear", [](PackedTensor& p) { p.scheme.bits = 33; }, "supported: 2 to 8 bits"},
    {"negative width", "linear", [](PackedTensor& p) { p.scheme.bits = -1; }, "supported: 2 to 8 bits"},
    {"block of 0", "nf4", [](PackedTensor& p) { p.scheme.granularity.rows = 0; }, "at least 1"},
    {"other granularity", "nf4", [](PackedTensor& p) { p.scheme.granularity.rows = 1; }, "bytes of scales"},
    {"wrong rank", "linear", [](PackedTensor& p) { p.shape = Shape{135}; }, "supported: 2 dimensions"},
    {"no elements", "linear",
     [](PackedTensor& p) {
       p.shape = Shape{0, 27};
     },
     "no elements"},
    {"another shape", "linear",
     [](PackedTensor& p) {
       p.shape = Shape{5, 36};
     },
     "bytes of codes"},
    {"2^62 weights", "linear",
     [](PackedTensor& p) {
       p.shape = Shape{1, int64_t{1} << 62};
     },
     "cannot hold"},
    {"2^62 channels", "linear",
     [](PackedTensor& p) {
       p.shape = Shape{int64_t{1} << 62, 1};
     },
     "cannot hold"},
};

TEST(Validate, RefusesEveryCorruptionInOneLineThatNamesTheTensor) {
  for (const Corruption& corruption : corruptions) {
    SCOPED_TRACE(corruption.what);
    PackedTensor packed = packed_example(corruption.scheme);
    ASSERT_NO_THROW(validate(packed, "w"));
    corruption.apply(packed);
    try {
      validate(packed, "classifier.1.weight");
      ADD_FAILURE() << "was accepted";
    } catch (const FormatError& error) {
      EXPECT_THAT(error.what(), ::testing::StartsWith("classifier.1.weight: "));
      EXPECT_THAT(error.what(), HasSubstr(corruption.message));
      EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("\n")));
    }
  }
}

TEST(Validate, AcceptsAnyCodes) {
  // Unused codes (FP8's NaN, linear's last) are harmless: every byte pattern decodes to finite
  // weights.
  for (const std::string scheme :
       {"linear:3", "linear:5:zero-point", "fp8-e4m3", "fp8-e5m2", "nf4", "stable-embedding"}) {
    PackedTensor packed = packed_example(scheme);
    Random random(2);
    for (uint8_t& byte : packed.codes) byte = static_cast<uint8_t>(random.below(256));
    EXPECT_NO_THROW(validate(packed, "w"));
    std::vector<float> weights(static_cast<size_t>(packed.shape.elements()));
    dequantize(packed, {weights.data(), packed.shape});
    for (const float weight : weights) EXPECT_TRUE(std::isfinite(weight)) << scheme;
  }
}

TEST(PackedTensor, AStoredCodebookReplacesTheMethods) {
  PackedTensor packed = packed_example("linear:2:tensor", {1, 4});
  packed.codebook = {-1.0F, -0.25F, 0.5F, 1.0F};
  packed.codes[0] = 0b11100100;  // codes 0, 1, 2, 3
  set_scale(packed, 0, 2.0F);
  ASSERT_NO_THROW(validate(packed, "w"));
  std::vector<float> weights(4);
  dequantize(packed, {weights.data(), packed.shape});
  EXPECT_EQ(weights, (std::vector<float>{-2.0F, -0.5F, 1.0F, 2.0F}));
}

TEST(PackedTensor, BlockIdsAreAsWideAsTheNumberOfBlocksNeeds) {
  const std::vector<std::pair<int, int>> widths = {{1, 1}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {8, 3}, {9, 4}};
  for (const auto& [blocks, bits] : widths)
    EXPECT_EQ(packed_example("stable-embedding:4:sorted:1", {1, blocks}).block_id_bits(), bits) << blocks;
  EXPECT_EQ(packed_example("linear").block_id_bits(), 0);
}

TEST(Dequantize, ChecksTheShapeOfItsOutput) {
  const PackedTensor packed = packed_example("linear");
  std::vector<float> weights(135);
  EXPECT_THROW(dequantize(packed, {weights.data(), Shape{5, 27}}), ShapeError);
}

}  // namespace
}  // namespace nibblenet
