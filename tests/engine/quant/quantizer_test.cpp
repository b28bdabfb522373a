#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numbers>
#include <numeric>
#include <string>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/bits.h"
#include "engine/quant/packed_tensor.h"
#include "tests/engine/quant/cases.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using testing::view;
using Kind = Granularity::Kind;
constexpr float largest_float = std::numeric_limits<float>::max();

std::vector<float> dequantized(const PackedTensor& packed) {
  std::vector<float> weights(static_cast<size_t>(packed.shape.elements()));
  dequantize(packed, {weights.data(), packed.shape});
  return weights;
}

std::vector<float> quantized(const std::vector<float>& weights, const Shape& shape, const Scheme& scheme) {
  return dequantized(quantize(view(weights, shape), scheme, "w"));
}

/// Standard normal values (Box-Muller).
std::vector<float> gaussian(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    const double radius = std::sqrt(-2 * std::log(1 - static_cast<double>(random.uniform())));
    values.push_back(
        static_cast<float>(radius * std::cos(2 * std::numbers::pi * static_cast<double>(random.uniform()))));
  }
  return values;
}

/// Bell-shaped weights whose first channel is zero, if there are others.
std::vector<float> ordinary_weights(const Shape& shape) {
  std::vector<float> weights = gaussian(shape.elements(), 1);
  if (shape[0] > 1) std::fill_n(weights.begin(), shape.inner_elements(), 0.0F);
  return weights;
}

/// Subnormal and tiny numbers, zeros of both signs, equal magnitudes, and a single huge one (within
/// f16's range).
std::vector<float> extreme_weights(const Shape& shape) {
  Random random(2);
  const std::vector<float> magnitudes = {1e-45F, 1e-42F, 1e-39F, 0.0F, -0.0F, 1e-7F, 4e-8F};
  std::vector<float> weights;
  for (int64_t i = 0; i < shape.elements(); ++i)
    weights.push_back(magnitudes[random.below(magnitudes.size())] *
                      static_cast<float>(static_cast<int64_t>(random.below(401)) - 200));
  weights[weights.size() / 2] = -6e4F;
  return weights;
}

// ---- An independent reference: groups by key, scales and nearest values by definition, in no
// particular order.

std::vector<std::vector<size_t>> reference_groups(const std::vector<float>& weights, const Shape& shape,
                                                  const Granularity& granularity) {
  std::vector<std::vector<size_t>> groups;
  if (granularity.kind == Kind::sorted) {
    std::vector<size_t> order(weights.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, {}, [&](size_t i) { return std::fabs(weights[i]); });
    const auto block = static_cast<size_t>(granularity.rows == 0 ? shape[0] : granularity.rows);
    for (size_t rank = 0; rank < order.size(); ++rank) {
      if (rank % block == 0) groups.emplace_back();
      groups.back().push_back(order[rank]);
    }
    for (std::vector<size_t>& group : groups) std::ranges::sort(group);
    return groups;
  }
  std::map<testing::GroupKey, std::vector<size_t>> by_key;
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto inner = static_cast<size_t>(shape.inner_elements());
    by_key[testing::group_key(granularity, shape, static_cast<int64_t>(i / inner), static_cast<int64_t>(i % inner))]
        .push_back(i);
  }
  for (auto& [key, group] : by_key) groups.push_back(std::move(group));
  return groups;
}

float reference_nearest(const Scheme& scheme, const Codebook& codebook, float x) {
  if (scheme.method == Method::linear) return std::clamp(std::nearbyint(x), -codebook.scale_to, codebook.scale_to);
  const bool is_fp8 = scheme.bits == 8 && codebook.scale_to > 1;
  const auto distance = [x](float value) { return std::fabs(static_cast<double>(x) - static_cast<double>(value)); };
  uint8_t best = codebook.ordered_codes[0];
  for (int i = 1; i < codebook.count; ++i) {
    const uint8_t code = codebook.ordered_codes[static_cast<size_t>(i)];
    if (x >= codebook.values[code]) {  // nearer than all below, by however little
      best = code;
      continue;
    }
    const double gain = distance(codebook.values[best]) - distance(codebook.values[code]);
    if (gain > 0 || (gain == 0 && is_fp8 && code % 2 == 0)) best = code;
  }
  return codebook.values[best];
}

void reference_affine(const std::vector<float>& weights, const std::vector<size_t>& group, const Scheme& scheme,
                      std::vector<float>& out) {
  float low = 0;
  float high = 0;
  for (const size_t i : group) {
    low = std::min(low, weights[i]);
    high = std::max(high, weights[i]);
  }
  const float top = static_cast<float>((1 << scheme.bits) - 1);
  const float range = high - low;
  const float step = (scheme.scale == ScaleType::f16 ? f16_to_f32(f32_to_f16(range)) : range) / top;
  if (step == 0) return;
  const float zero_point = std::clamp(std::nearbyint(-low / step), 0.0F, top);
  for (const size_t i : group)
    out[i] = (std::clamp(std::nearbyint(weights[i] / step) + zero_point, 0.0F, top) - zero_point) * step;
}

/// The signed element of largest magnitude; for trained methods, the root mean square with its
/// sign.
float reference_extreme(const std::vector<float>& weights, const std::vector<size_t>& group, const Scheme& scheme) {
  const float extreme = weights[*std::ranges::max_element(group, {}, [&](size_t i) { return std::fabs(weights[i]); })];
  if (!traits_of(scheme.method).trained) return extreme;
  double squares = 0;
  for (const size_t i : group) squares += static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
  return std::copysign(static_cast<float>(std::sqrt(squares / static_cast<double>(group.size()))), extreme);
}

/// `codebook`: that of the method, or the trained one.
std::vector<float> reference_quantized(const std::vector<float>& weights, const Shape& shape, const Scheme& scheme,
                                       const Codebook& codebook) {
  std::vector<float> out(weights.size(), 0.0F);
  for (const std::vector<size_t>& group : reference_groups(weights, shape, scheme.granularity)) {
    if (scheme.zero_point) {
      reference_affine(weights, group, scheme, out);
      continue;
    }
    const float extreme = reference_extreme(weights, group, scheme);
    float scale = scheme.sign == ScaleSign::signed_max ? extreme : std::fabs(extreme);
    if (scheme.scale == ScaleType::f16) scale = f16_to_f32(f32_to_f16(scale));
    const float step = scale / codebook.scale_to;
    if (step == 0) continue;
    for (const size_t i : group) out[i] = reference_nearest(scheme, codebook, weights[i] / step) * step;
  }
  return out;
}

/// Random ranges of every channel, decoded by themselves, are the same bits as in the whole.
void expect_ranges_decode_alike(const PackedTensor& packed, const std::vector<float>& whole) {
  const Codebook codebook = codebook_of(packed);
  const PackedView packed_view = view_of(packed, codebook);
  const int64_t inner = packed.shape.inner_elements();
  Random random(3);
  for (int64_t channel = 0; channel < packed.shape[0]; ++channel) {
    const auto begin = static_cast<int64_t>(random.below(static_cast<uint64_t>(inner)));
    const auto count = static_cast<int64_t>(random.below(static_cast<uint64_t>(inner - begin + 1)));
    std::vector<float> part(static_cast<size_t>(count));
    decode_reference(packed_view, channel, begin, count, part.data());
    ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + (channel * inner + begin)));
  }
}

class EveryScheme : public ::testing::TestWithParam<MethodTraits> {};

TEST_P(EveryScheme, EqualsTheIndependentReferenceOnAwkwardShapes) {
  for (const Shape& shape : testing::awkward_shapes)
    for (const std::vector<float>& weights : {ordinary_weights(shape), extreme_weights(shape)})
      for (const Scheme& scheme : testing::schemes_of(GetParam())) {
        SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
        const PackedTensor packed = quantize(view(weights, shape), scheme, "w");
        ASSERT_NO_THROW(validate(packed, "w"));
        const std::vector<float> actual = dequantized(packed);
        const std::vector<float> expected = reference_quantized(weights, shape, scheme, codebook_of(packed));
        for (size_t i = 0; i < actual.size(); ++i) ASSERT_EQ(actual[i], expected[i]) << i << ": " << weights[i];
        ASSERT_NO_FATAL_FAILURE(expect_ranges_decode_alike(packed, actual));
      }
}

TEST_P(EveryScheme, NeverDecodesToNanOrInfinity) {
  const Shape shape{3, 4};
  const std::vector<float> weights = {largest_float, 1.0F,   -1.0F, 0.0F,  -largest_float, 1e38F,
                                      1e-45F,        1e-38F, 3e38F, 2e38F, 1e20F,          -0.0F};
  for (Scheme scheme : testing::schemes_of(GetParam())) {
    if (scheme.scale == ScaleType::f16 || scheme.zero_point) continue;  // refused, see below
    SCOPED_TRACE(to_string(scheme));
    const PackedTensor packed = quantize(view(weights, shape), scheme, "w");
    ASSERT_NO_THROW(validate(packed, "w"));
    for (const float weight : dequantized(packed)) ASSERT_TRUE(std::isfinite(weight)) << weight;
  }
}

TEST_P(EveryScheme, KeepsZerosExactly) {
  const Shape shape{2, 3, 5, 5};
  const std::vector<float> zeros(static_cast<size_t>(shape.elements()), 0.0F);
  for (const Scheme& scheme : testing::schemes_of(GetParam())) {
    const PackedTensor packed = quantize(view(zeros, shape), scheme, "w");
    for (int64_t group = 0; group < packed.groups(); ++group) ASSERT_EQ(packed.scale(group), 0.0F);
    for (const float weight : dequantized(packed)) ASSERT_EQ(weight, 0.0F) << to_string(scheme);
  }
}

TEST_P(EveryScheme, DoesNotDependOnTheNumberOfThreads) {
  const Shape shape{37, 65};
  const std::vector<float> weights = gaussian(shape.elements(), 4);
  const int threads = omp_get_max_threads();
  for (const Scheme& scheme : testing::schemes_of(GetParam())) {
    omp_set_num_threads(1);
    const PackedTensor serial = quantize(view(weights, shape), scheme, "w");
    omp_set_num_threads(3);
    const PackedTensor parallel = quantize(view(weights, shape), scheme, "w");
    ASSERT_EQ(serial.codes, parallel.codes) << to_string(scheme);
    ASSERT_EQ(serial.scales, parallel.scales) << to_string(scheme);
    ASSERT_EQ(serial.zero_points, parallel.zero_points) << to_string(scheme);
    ASSERT_EQ(serial.block_ids, parallel.block_ids) << to_string(scheme);
    ASSERT_EQ(serial.codebook, parallel.codebook) << to_string(scheme);
  }
  omp_set_num_threads(threads);
}

INSTANTIATE_TEST_SUITE_P(Methods, EveryScheme, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& method) { return testing::identifier(method.param.name); });

TEST(Linear, ErrorIsAtMostHalfAStep) {
  const Shape shape{5, 64};
  const std::vector<float> weights = gaussian(shape.elements(), 5);
  for (const Scheme& scheme : testing::schemes_of(traits_of(Method::linear))) {
    if (scheme.scale == ScaleType::f16) continue;  // a scale that was rounded down clips the extreme
    SCOPED_TRACE(to_string(scheme));
    const PackedTensor packed = quantize(view(weights, shape), scheme, "w");
    const Codebook codebook = codebook_of(packed);
    const PackedView packed_view = view_of(packed, codebook);
    const std::vector<float> actual = dequantized(packed);
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto index = static_cast<int64_t>(i);
      const float step = std::fabs(packed_view.step(packed_view.groups.group(index / 64, index % 64)));
      // Division, step and product each round once: 2^-24 of a quotient of at most scale_to steps.
      const float rounding = 3 * 0x1p-24F * codebook.scale_to;
      ASSERT_LE(std::fabs(weights[i] - actual[i]), step * (0.5F + rounding)) << i;
    }
  }
}

TEST(SignedScale, HitsTheExtremeExactlyWhateverItsSign) {
  const std::vector<float> weights = {0.25F, -0.5F, 0.5F, 0.125F};
  for (int bits = 3; bits <= 8; ++bits) {
    Scheme scheme = default_scheme(Method::dynamic_tree, bits);
    ASSERT_EQ(scheme.sign, ScaleSign::signed_max);
    const PackedTensor packed = quantize(view(weights, {1, 4}), scheme, "w");
    EXPECT_EQ(packed.scale(0), -0.5F) << "the first of two equal magnitudes";
    EXPECT_EQ(dequantized(packed)[1], -0.5F);

    scheme.sign = ScaleSign::absolute;
    const float missed = quantized(weights, {1, 4}, scheme)[1];
    EXPECT_EQ(missed, -0.5F * make_codebook(Method::dynamic_tree, bits).values[(1U << bits) - 2]) << "-1 is no value";
  }
}

TEST(SortedBlocks, TiesFallByIndexAndIdsAreStored) {
  const std::vector<float> weights = {2.0F, -1.0F, 1.0F, -2.0F, 0.0F, 3.0F};
  const PackedTensor packed = quantize(view(weights, {2, 3}), parse_scheme("stable-embedding:4:sorted"), "w");
  EXPECT_EQ(packed.groups(), 3);
  EXPECT_EQ(packed.block_id_bits(), 2);
  // Sorted: 0, -1 | 1, 2 | -2, 3.
  const std::vector<uint32_t> expected = {1, 0, 1, 2, 0, 2};
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(read_field(packed.block_ids.data() + i / 3 * 16, static_cast<int64_t>(i % 3), 2), expected[i]) << i;
  EXPECT_EQ(packed.scale(0), -1.0F);
  EXPECT_EQ(packed.scale(1), 2.0F);
  EXPECT_EQ(packed.scale(2), 3.0F);
}

TEST(Layout, CodesAreDenseLittleEndianAndChannelsAligned) {
  const std::vector<float> weights = {-7.0F, 0.0F, 7.0F, 14.0F, 2.0F, -14.0F};
  const PackedTensor packed = quantize(view(weights, {2, 3}), parse_scheme("linear:4"), "w");
  std::vector<uint8_t> expected(32);
  expected[0] = 0x70;   // codes 0 and 7
  expected[1] = 0x0E;   // code 14
  expected[16] = 0x8E;  // codes 14 and 8
  EXPECT_EQ(packed.codes, expected);
  EXPECT_EQ(packed.scale(0), 7.0F);
  EXPECT_EQ(packed.scale(1), 14.0F);
}

TEST(Quantize, RefusesWhatItCannotRepresentAndNamesTheTensor) {
  const auto error_of = [](std::vector<float> weights, const std::string& scheme) -> std::string {
    try {
      quantize(view(weights, {1, static_cast<int64_t>(weights.size())}), parse_scheme(scheme), "features.0.weight");
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  using ::testing::AllOf;
  using ::testing::HasSubstr;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_THAT(error_of({1, nan, infinity}, "linear"), AllOf(HasSubstr("features.0.weight"), HasSubstr("weight 1")));
  EXPECT_THAT(error_of({1, 2, -infinity}, "stable-embedding"), HasSubstr("weight 2 is -inf"));
  EXPECT_THAT(error_of({1, 65520.0F}, "linear:4:f16"), AllOf(HasSubstr("features.0.weight"), HasSubstr("f16")));
  EXPECT_THAT(error_of({4e4F, -4e4F}, "linear:4:f16:zero-point"), HasSubstr("range of f16"));
  EXPECT_THAT(error_of({3e38F, -3e38F}, "linear:4:zero-point"), HasSubstr("range of f32"));
  EXPECT_EQ(error_of({65519.0F, -65519.0F}, "linear:4:f16"), "no error");
  // 2^-25 and below are 0 in f16: a whole layer would be lost. What is nothing beside the rest may
  // become 0.
  for (const float tiny : {2.9e-8F, 1e-12F, 1e-40F}) {
    EXPECT_THAT(error_of({tiny, -tiny / 2}, "linear:4:f16"), AllOf(HasSubstr("features.0.weight"), HasSubstr("f32")));
    EXPECT_THAT(error_of({tiny, -tiny}, "nf4:f16"), HasSubstr("rounds to 0"));
    EXPECT_EQ(error_of({tiny, -tiny}, "linear:4:f32"), "no error");
    const auto two_channels = [&](std::vector<float> weights) {
      quantize(view(weights, {2, 1}), parse_scheme("linear:4:channel:f16"), "w");
    };
    EXPECT_THROW(two_channels({tiny, tiny}), Error);
    EXPECT_NO_THROW(two_channels({tiny, 0.5F}));
  }
  EXPECT_EQ(error_of({3.1e-8F, 0}, "linear:4:f16"), "no error");
  EXPECT_EQ(error_of({0, 0}, "linear:4:f16"), "no error");

  const std::vector<float> weights(8);
  EXPECT_THROW(quantize(view(weights, {8}), Scheme{}, "w"), ShapeError);
  EXPECT_THROW(quantize(view(weights, {2, 2, 2}), Scheme{}, "w"), ShapeError);
  EXPECT_THROW(quantize(view(weights, {0, 8}), Scheme{}, "w"), ShapeError);
  EXPECT_THROW(quantize(view(weights, {1, 8}), Scheme{.bits = 9}, "w"), UsageError);
}

TEST(Golden, NearestValueTimesAbsoluteMaximum) {
  const SafetensorsFile file(testing::golden_folder() / "quant.safetensors");
  const std::map<std::string, std::string> granularities = {
      {"tensor", "tensor"}, {"channel", "channel"}, {"row", "row"}, {"block16", "block:16"}};
  int cases = 0;
  for (const TensorEntry& entry : file.tensors()) {
    std::vector<std::string> parts;  // true / codebook / granularity / case
    for (size_t begin = 0; begin <= entry.name.size();) {
      const size_t end = std::min(entry.name.find('/', begin), entry.name.size());
      parts.push_back(entry.name.substr(begin, end - begin));
      begin = end + 1;
    }
    if (parts[0] != "true") continue;
    SCOPED_TRACE(entry.name);
    ASSERT_EQ(parts.size(), 4U);
    const Tensor<float> weights = testing::golden(file, parts[3] + "/w");
    const Tensor<float> expected = testing::golden(file, entry.name);
    Scheme scheme = testing::golden_scheme(parts[1]);
    scheme.granularity = parse_granularity(granularities.at(parts[2]));
    scheme.sign = ScaleSign::absolute;
    // The golden blocks run through the whole tensor, ours end with an output channel: the test
    // views it as one channel.
    const Shape shape = parts[2] == "block16" ? Shape{1, weights.elements()} : weights.shape();
    const PackedTensor packed = quantize({weights.data(), shape}, scheme, "w");
    const std::vector<float> actual = dequantized(packed);
    const Codebook codebook = codebook_of(packed);
    const PackedView packed_view = view_of(packed, codebook);

    for (int64_t i = 0; i < weights.elements(); ++i) {
      const float weight = weights.data()[i];
      const float ours = actual[static_cast<size_t>(i)];
      const float theirs = expected.data()[i];
      const int64_t inner = shape.inner_elements();
      const float scale = packed_view.scale(packed_view.groups.group(i / inner, i % inner));
      // Either the same value but for the order of two roundings, or the other side of a tie:
      // equally near.
      const float few_roundings = 4 * std::numeric_limits<float>::epsilon() * scale;
      ASSERT_NEAR(std::fabs(ours - weight), std::fabs(theirs - weight), few_roundings) << i;
      const bool is_tie = std::fabs((ours + theirs) / 2 - weight) <= few_roundings;
      ASSERT_TRUE(is_tie || std::fabs(ours - theirs) <= few_roundings)
          << i << ": " << weight << ", " << ours << ", " << theirs;
    }
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

struct Quality {
  std::string scheme;
  double blocks_of_64;  ///< dB
  double rows_of_4096;
};

TEST(Quality, SignalToNoiseOfGaussianWeightsIsAsComputedElsewhere) {
  // quantization.md 3.12 of the reference: absolute maxima, nearest values.
  const std::vector<Quality> table = {
      {"dynamic-tree:3", 12.0, 10.1},
      {"dynamic-tree:4", 17.1, 14.8},
      {"dynamic-tree:5", 22.7, 20.1},
      {"dynamic-tree:6", 28.5, 25.9},
      {"dynamic-tree:7", 34.5, 31.7},
      {"dynamic-tree:8", 40.4, 37.7},
      {"nf4", 20.8, 19.1},
      {"fp4", 19.5, 18.5},
      {"fp8-e4m3", 32.0, 31.6},
      {"fp8-e5m2", 26.0, 25.5},
      {"linear:3", 12.0, 8.6},
      {"linear:4", 19.4, 16.0},
      {"linear:5", 26.0, 22.6},
      {"linear:6", 32.3, 28.9},
      {"linear:8", 44.6, 41.2},
  };
  const Shape shape{100, 4096};
  const std::vector<float> weights = gaussian(shape.elements(), 6);
  for (const Quality& quality : table)
    for (const bool rows : {false, true}) {
      Scheme scheme = parse_scheme(quality.scheme);
      scheme.granularity = parse_granularity(rows ? "row" : "block:64");
      scheme.sign = ScaleSign::absolute;
      const std::vector<float> actual = quantized(weights, shape, scheme);
      double signal = 0;
      double noise = 0;
      for (size_t i = 0; i < weights.size(); ++i) {
        signal += std::pow(static_cast<double>(weights[i]), 2);
        noise += std::pow(static_cast<double>(weights[i]) - static_cast<double>(actual[i]), 2);
      }
      // Both sides sample: 0.15 dB each, and the table is rounded to 0.1.
      EXPECT_NEAR(10 * std::log10(signal / noise), rows ? quality.rows_of_4096 : quality.blocks_of_64, 0.35)
          << to_string(scheme);
    }
}

}  // namespace
}  // namespace nibblenet
