#include "engine/quant/simulate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "engine/core/random.h"
#include "engine/quant/quantizer.h"
#include "tests/engine/quant/cases.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::view;

constexpr float inf = std::numeric_limits<float>::infinity();

std::vector<float> simulated(const std::vector<float>& weights, const Shape& shape, const std::string& scheme) {
  std::vector<float> out(weights.size());
  simulate({out.data(), shape}, view(weights, shape), parse_simulated_scheme(scheme));
  return out;
}

std::vector<float> simulated_row(const std::vector<float>& weights, const std::string& scheme) {
  return simulated(weights, Shape{1, static_cast<int64_t>(weights.size())}, scheme);
}

/// Values as their bits, so that 0 and -0 differ.
std::vector<uint32_t> bits_of(std::span<const float> values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

std::vector<int64_t> counts_of(const std::vector<float>& row, int bits) {
  const auto counts = exponent_counts(view(row, {1, static_cast<int64_t>(row.size())}), bits).counts;
  return {counts.begin(), counts.end()};
}

std::vector<float> uniform(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(2 * random.uniform() - 1);
  return values;
}

// ---- The notebooks' own output

/// "dynamic_tree_row_4" and its like in the golden data.
SimulatedScheme golden_simulation(const std::string& method) {
  if (method == "linear_tensor_int8") return {Simulation::linear, 8};
  if (method == "fp8_row") return {Simulation::fp8, 8};
  if (method == "stable_embedding_dt8") return {Simulation::stable_embedding, 8};
  return {Simulation::dynamic_tree, std::stoi(method.substr(method.rfind('_') + 1))};
}

TEST(Golden, EveryBitOfTheNotebooks) {
  const SafetensorsFile file(testing::golden_folder() / "quant.safetensors");
  int cases = 0;
  for (const TensorEntry& entry : file.tensors()) {
    if (!entry.name.starts_with("notebook/") || entry.dtype != DType::f32) continue;
    SCOPED_TRACE(entry.name);
    const size_t separator = entry.name.rfind('/');
    const std::string method = entry.name.substr(9, separator - 9);
    const Tensor<float> weights = testing::golden(file, entry.name.substr(separator + 1) + "/w");
    const Tensor<float> expected = testing::golden(file, entry.name);
    std::vector<float> actual(static_cast<size_t>(weights.elements()));
    simulate({actual.data(), weights.shape()}, weights.view(), golden_simulation(method));
    EXPECT_EQ(bits_of(actual), bits_of(expected.view().span()));
    ++cases;
  }
  EXPECT_GE(cases, 4 * 9);
}

TEST(Golden, ExponentCountsOfTheNotebooks) {
  const SafetensorsFile file(testing::golden_folder() / "quant.safetensors");
  int cases = 0;
  for (const TensorEntry& entry : file.tensors()) {
    constexpr std::string_view prefix = "notebook/dynamic_tree_exponents_";
    if (!entry.name.starts_with(prefix)) continue;
    SCOPED_TRACE(entry.name);
    const Tensor<float> weights = testing::golden(file, entry.name.substr(entry.name.rfind('/') + 1) + "/w");
    const ExponentCounts counts = exponent_counts(weights.view(), entry.name[prefix.size()] - '0');
    const auto actual = bytes_of(std::span<const int64_t>(counts.counts));
    EXPECT_TRUE(std::ranges::equal(actual, entry.bytes));
    ++cases;
  }
  EXPECT_GE(cases, 4 * 6);
}

// ---- linear: S = 1/(max - min) * 255, truncation, wrap-around

TEST(SimulatedLinear, TruncatesTowardsZero) {
  // S = 1 / 255 * 255 = 1: integers stay, fractions go.
  EXPECT_THAT(simulated_row({-127.9F, -0.9F, 0.9F, 1.5F, 127.1F}, "simulated-linear"), ElementsAre(-127, 0, 0, 1, 127));
}

TEST(SimulatedLinear, WrapsWhatInt8CannotHold) {
  // A range of 0 to 255, S = 1: 128 becomes -128, 255 becomes -1.
  EXPECT_THAT(simulated_row({0, 127, 128, 200, 255}, "simulated-linear"), ElementsAre(0, 127, -128, -56, -1));
  // A range far from 0: 1000 = 3 * 256 + 232 -> -24.
  EXPECT_THAT(simulated_row({1000, 1255}, "simulated-linear-row"), ElementsAre(-24, -25));
  EXPECT_THAT(simulated_row({-1000, -1255}, "simulated-linear-row"), ElementsAre(24, 25));
}

TEST(SimulatedLinear, ConvertsAsX86BeyondInt32) {
  // S = 127.5. Products of 24 bits just below 2^31 are multiples of 128: 0 or 128 in the low byte,
  // and that is -128.
  EXPECT_THAT(simulated_row({16777214, 16777213, 16777212}, "simulated-linear"), ElementsAre(0, -128 / 127.5F, 0));
  // (2^25 - 2) * 127.5 is beyond: INT32_MIN, whose low byte is 0.
  EXPECT_THAT(simulated_row({33554430, 33554428}, "simulated-linear"), ElementsAre(0, 0));
}

TEST(SimulatedLinear, OfEqualWeightsIsZero) {
  // S is infinite: the notebooks' int8 of an infinity, or of 0 * Inf, is 0.
  for (const float weight : {0.0F, 0.5F, -3.0F, 1e-45F})
    EXPECT_EQ(bits_of(simulated_row({weight, weight}, "simulated-linear")), bits_of(std::vector<float>{0, 0}))
        << weight;
  EXPECT_THAT(simulated_row({1e-40F, 2e-40F}, "simulated-linear-row"), ElementsAre(0, 0)) << "1 / range overflows";
}

TEST(SimulatedLinear, OfARangeBeyondFloatIsZero) {
  for (const char* scheme : {"simulated-linear", "simulated-linear-row"})
    EXPECT_THAT(simulated_row({-3e38F, 3e38F, 1}, scheme), ElementsAre(0, 0, 0));
}

TEST(SimulatedLinear, RowsAreThoseOfTheLastDimension) {
  const std::vector<float> weights = uniform(2 * 3 * 5 * 4, 1);
  const std::vector<float> actual = simulated(weights, {2, 3, 5, 4}, "simulated-linear-row");
  for (size_t row = 0; row < weights.size(); row += 4) {
    const std::vector<float> alone(weights.begin() + row, weights.begin() + row + 4);
    const std::vector<float> part(actual.begin() + row, actual.begin() + row + 4);
    EXPECT_EQ(part, simulated_row(alone, "simulated-linear"));
  }
}

// ---- Repairs of linear

TEST(LinearRepairs, EachMendsItsOwnDefect) {
  // A row in 5…6: S = 255, so w S is 1275…1530, far from int8.
  const std::vector<float> high = {5, 5.5F, 6};
  const auto row = [&](const std::string& repairs) { return simulated_row(high, "simulated-linear-row" + repairs); };
  EXPECT_THAT(row(""), ElementsAre(-5 / 255.0F, 122 / 255.0F, -6 / 255.0F));
  EXPECT_THAT(row("+overflow"), ElementsAre(127 / 255.0F, 127 / 255.0F, 127 / 255.0F));
  // Widened to 0…6, S = 42.5: 212, 233, 255, which wrap.
  EXPECT_THAT(row("+range"), ElementsAre(-44 / 42.5F, -23 / 42.5F, -1 / 42.5F));
  // Shifted by 1403, S = 255: -128, -0.5 cut to 0, 127.
  EXPECT_THAT(row("+zero-point"), ElementsAre(5, 1403 / 255.0F, 6));
  EXPECT_THAT(row("+truncation+overflow+range+zero-point"), ElementsAre(212 / 42.5F, 234 / 42.5F, 6));
}

TEST(LinearRepairs, RoundingAloneWrapsTheLargestWeights) {
  // -1…1: S = 127.5, and 127.5 rounds to 128, which int8 takes for -128.
  EXPECT_THAT(simulated_row({-1, 0.999F, 1}, "simulated-linear"),
              ElementsAre(-127 / 127.5F, 127 / 127.5F, 127 / 127.5F));
  EXPECT_THAT(simulated_row({-1, 0.999F, 1}, "simulated-linear+truncation"),
              ElementsAre(-128 / 127.5F, 127 / 127.5F, -128 / 127.5F));
  EXPECT_THAT(simulated_row({-1, 0.999F, 1}, "simulated-linear+truncation+overflow"),
              ElementsAre(-128 / 127.5F, 127 / 127.5F, 127 / 127.5F));
}

TEST(LinearRepairs, AllOfThemErrByHalfAStepAtMost) {
  for (const std::string name : {"simulated-linear", "simulated-linear-row"})
    for (const Shape& shape : testing::awkward_shapes)
      for (const float offset : {0.0F, 3.0F, -3.0F}) {
        std::vector<float> weights = uniform(shape.elements(), 7);
        for (float& weight : weights) weight += offset;
        const std::vector<float> actual =
            simulated(weights, shape, name + "+overflow+truncation+range+zero-point+precision");
        // A range of at most 4 + |offset| in 255 steps; the zero point is rounded, so the ends may
        // be clamped by half a step.
        const float step = (name == "simulated-linear" || offset != 0 ? 4.0F : 2.0F) / 255;
        for (size_t i = 0; i < weights.size(); ++i)
          ASSERT_NEAR(actual[i], weights[i], step * 1.001F) << to_string(shape);
      }
}

TEST(LinearRepairs, OfEqualWeightsStayFinite) {
  for (const LinearRepairTraits& repair : linear_repair_table())
    for (const float weight : {0.0F, 0.5F, -3e38F, 1e-45F, 1e-40F}) {
      const std::vector<float> actual =
          simulated_row({weight, weight}, fmt::format("simulated-linear-row+{}", repair.name));
      EXPECT_TRUE(std::isfinite(actual[0])) << repair.name << " " << weight;
      EXPECT_EQ(actual[0], actual[1]);
    }
}

// ---- fp8

TEST(SimulatedFp8, CutsToThreeMantissaBits) {
  EXPECT_THAT(simulated_row({1, 0.9999F, -0.9999F, 0.5F, 0.5624F, 0.5625F}, "simulated-fp8"),
              ElementsAre(1, 0.9375F, -0.9375F, 0.5F, 0.5F, 0.5625F));
}

TEST(SimulatedFp8, ClampsTheExponentAndSoMakesZeroSomething) {
  const float least = std::ldexp(1.0F, -14);
  // 1.5 * 2^-20 keeps its mantissa; 0 has none, and its sign bit counts.
  EXPECT_THAT(simulated_row({1, std::ldexp(1.5F, -20), 0.0F, -0.0F, -std::ldexp(1.0F, -30)}, "simulated-fp8"),
              ElementsAre(1, 1.5F * least, least, -least, -least));
  // A subnormal quotient has exponent bits of 0, too: 2^-127 is half of the field below, 4 of 8
  // eighths.
  EXPECT_THAT(simulated_row({1, std::ldexp(1.0F, -127)}, "simulated-fp8"), ElementsAre(1, 1.5F * least));
}

// ---- dynamic tree

TEST(SimulatedTree, KeepsSevenBitsNearTheMaximumAtAnyWidth) {
  for (int bits = 3; bits <= 8; ++bits) {
    const std::string scheme = "simulated-dynamic-tree:" + std::to_string(bits);
    EXPECT_THAT(simulated_row({1, 0.5F, 0.2F, -0.2F, 0.99F}, scheme),
                ElementsAre(127.0F / 128, 0.5F, 25.0F / 128, -25.0F / 128, 126.0F / 128))
        << scheme;
  }
}

TEST(SimulatedTree, LosesABitWithEachDecade) {
  // x = 0.06: e = 1, 0.6 cut to n - 3 bits, over 10 in double.
  const auto second = [](int bits) {
    return simulated_row({1, 0.06F}, "simulated-dynamic-tree:" + std::to_string(bits))[1];
  };
  EXPECT_EQ(second(8), static_cast<float>(19.0 / 32 * 0.1));
  EXPECT_EQ(second(7), static_cast<float>(9.0 / 16 * 0.1));
  EXPECT_EQ(second(6), static_cast<float>(4.0 / 8 * 0.1));
  EXPECT_EQ(second(5), static_cast<float>(2.0 / 4 * 0.1));
  EXPECT_EQ(second(4), static_cast<float>(1.0 / 2 * 0.1));
  EXPECT_EQ(second(3), 0);
}

TEST(SimulatedTree, DecadesEndAtTheDoublesOfATenth) {
  // 0.1F lies above the double 0.1 that it is compared with, 0.01F below a hundredth, and 10 *
  // 0.01F below a tenth.
  EXPECT_EQ(counts_of({1, 0.1F, std::nextafter(0.1F, 0.0F)}, 8), (std::vector<int64_t>{2, 1, 0, 0, 0, 0, 0, 0}));
  EXPECT_LT(static_cast<double>(0.01F) * 10, 0.1);
  EXPECT_EQ(counts_of({1, 0.01F, std::nextafter(0.01F, 1.0F)}, 8), (std::vector<int64_t>{1, 1, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(simulated_row({1, 0.1F}, "simulated-dynamic-tree:3")[1], 12.0F / 128);
  EXPECT_EQ(simulated_row({1, std::nextafter(0.1F, 0.0F)}, "simulated-dynamic-tree:3")[1], 0);
}

TEST(SimulatedTree, ZerosHaveTheSignsOfTheNotebooks) {
  // e = 1 of 4 bits leaves one bit: 0.03 loses it and is the integer 0. e = 2 is cut off: 0.0 with
  // the sign.
  EXPECT_EQ(bits_of(simulated_row({1, 0.03F, -0.03F, 0.005F, -0.005F}, "simulated-dynamic-tree:4")),
            bits_of(std::vector<float>{127.0F / 128, 0.0F, 0.0F, 0.0F, -0.0F}));
  // Here the notebooks' loop would not end.
  EXPECT_EQ(bits_of(simulated_row({1, 0.0F, -0.0F}, "simulated-dynamic-tree:4")),
            bits_of(std::vector<float>{127.0F / 128, 0.0F, 0.0F}));
}

TEST(SimulatedTree, SubnormalWeightsScaleLikeOthers) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  EXPECT_THAT(simulated_row({1024 * tiny, 512 * tiny, -256 * tiny}, "simulated-dynamic-tree:8"),
              ElementsAre(1016 * tiny, 512 * tiny, -256 * tiny));
  EXPECT_EQ(counts_of({1, tiny}, 8), (std::vector<int64_t>{1, 0, 0, 0, 0, 0, 0, 1}));
}

TEST(ExponentCounts, EndAtBitsMinusOne) {
  const std::vector<float> row = {1, 0.05F, 0.005F, 5e-4F, 5e-5F, 5e-6F, 5e-7F, 5e-8F, 5e-9F, 0};
  EXPECT_EQ(counts_of(row, 8), (std::vector<int64_t>{1, 1, 1, 1, 1, 1, 1, 3}));
  EXPECT_EQ(counts_of(row, 4), (std::vector<int64_t>{1, 1, 1, 7, 0, 0, 0, 0}));
  EXPECT_EQ(counts_of(row, 3), (std::vector<int64_t>{1, 1, 8, 0, 0, 0, 0, 0}));
  EXPECT_EQ(counts_of({0, 0}, 8), (std::vector<int64_t>{2, 0, 0, 0, 0, 0, 0, 0})) << "0 / 0 is not below a tenth";
  EXPECT_THROW(counts_of(row, 2), UsageError);
  EXPECT_THROW(counts_of({1, inf}, 8), Error);
}

// ---- stable embedding

TEST(SimulatedStableEmbedding, SortsByMagnitudeIntoBlocksOfTheRowCount) {
  // 2x4, blocks of 2: {1, -2}, {30, 40}, {-500, 600}, {7000, 7000} whatever their places.
  const std::vector<float> weights = {7000, 1, -500, 40, -2, 600, 30, 7000};
  const auto tree = [](float weight, float maximum) {
    return simulated_row({maximum, weight}, "simulated-dynamic-tree:8")[1];
  };
  EXPECT_THAT(simulated(weights, {2, 4}, "simulated-stable-embedding"),
              ElementsAre(tree(7000, 7000), tree(1, 2), tree(-500, 600), tree(40, 40), tree(-2, 2), tree(600, 600),
                          tree(30, 40), tree(7000, 7000)));
}

TEST(SimulatedStableEmbedding, TakesEachSliceOfAKernelByItself) {
  const Shape slice{5, 3};
  const std::vector<float> weights = uniform(2 * 3 * 15, 2);
  const std::vector<float> actual = simulated(weights, {2, 3, 5, 3}, "simulated-stable-embedding");
  for (size_t begin = 0; begin < weights.size(); begin += 15) {
    const std::vector<float> alone(weights.begin() + begin, weights.begin() + begin + 15);
    const std::vector<float> part(actual.begin() + begin, actual.begin() + begin + 15);
    EXPECT_EQ(part, simulated(alone, slice, "simulated-stable-embedding"));
  }
}

TEST(SimulatedStableEmbedding, OfALargeMatrixIsThatOfItsSortedRows) {
  // Large enough for the bucket sort: the sorted weights as rows of blocks, dynamic tree of each
  // row.
  const int64_t rows = 70;
  const int64_t columns = 1001;
  std::vector<float> weights = uniform(rows * columns, 3);
  weights[5] = weights[7] = -weights[9];
  const std::vector<float> actual = simulated(weights, {rows, columns}, "simulated-stable-embedding");
  std::vector<size_t> order(weights.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::stable_sort(order, {}, [&](size_t i) { return std::fabs(weights[i]); });
  std::vector<float> sorted;
  for (const size_t i : order) sorted.push_back(weights[i]);
  const std::vector<float> expected = simulated(sorted, {columns, rows}, "simulated-dynamic-tree:8");
  for (size_t rank = 0; rank < order.size(); ++rank) ASSERT_EQ(actual[order[rank]], expected[rank]) << rank;
}

// ---- What holds for all of them

std::vector<SimulatedScheme> all_schemes() {
  std::vector<SimulatedScheme> schemes;
  for (const SimulationTraits& traits : simulation_table())
    for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) schemes.push_back({traits.simulation, bits});
  return schemes;
}

TEST(Simulate, RowsOfZerosStayZeros) {
  for (const SimulatedScheme& scheme : all_schemes()) {
    std::vector<float> out(12, 1.0F);
    const std::vector<float> weights(12, 0.0F);
    simulate({out.data(), {2, 2, 1, 3}}, view(weights, {2, 2, 1, 3}), scheme);
    EXPECT_EQ(bits_of(out), bits_of(weights)) << to_string(scheme);
  }
}

TEST(Simulate, IsFiniteAndTheSameForAnyNumberOfThreads) {
  const int threads = omp_get_max_threads();
  for (const SimulatedScheme& scheme : all_schemes())
    for (const Shape& shape : testing::awkward_shapes) {
      std::vector<float> weights = uniform(shape.elements(), 4);
      weights[weights.size() / 2] = 0;
      if (weights.size() > 3) weights[3] = std::numeric_limits<float>::denorm_min();
      std::vector<std::vector<float>> results;
      for (const int count : {1, 2, 5}) {
        omp_set_num_threads(count);
        results.emplace_back(weights.size());
        simulate({results.back().data(), shape}, view(weights, shape), scheme);
        EXPECT_EQ(bits_of(results.back()), bits_of(results[0])) << to_string(scheme) << " " << to_string(shape);
      }
      for (const float value : results[0]) ASSERT_TRUE(std::isfinite(value)) << to_string(scheme);
    }
  omp_set_num_threads(threads);
}

TEST(Simulate, RefusesWhatItCannotTakeAndNamesTheTensor) {
  std::vector<float> out(2);
  const auto failure = [&](float weight, const Shape& shape) -> std::string {
    const std::vector<float> weights = {1, weight};
    try {
      simulate({out.data(), shape}, view(weights, shape), {Simulation::fp8, 8}, "features.0.weight");
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  for (const float weight : {inf, -inf, std::nanf("")})
    EXPECT_THAT(failure(weight, {1, 2}), HasSubstr("features.0.weight: weight 1 is")) << weight;
  EXPECT_THAT(failure(1, {2}), HasSubstr("weight tensor of shape 2"));
  const std::vector<float> weights(4);
  EXPECT_THROW(simulate({out.data(), {1, 2}}, view(weights, {1, 4}), {Simulation::fp8, 8}), ShapeError);
  EXPECT_THROW(simulate({out.data(), {1, 2}}, view(weights, {1, 2}), {Simulation::dynamic_tree, 9}), UsageError);
}

// ---- Names

TEST(SimulatedScheme, NamesRoundTrip) {
  for (const SimulatedScheme& scheme : all_schemes()) {
    EXPECT_EQ(parse_simulated_scheme(to_string(scheme)), scheme);
    EXPECT_TRUE(names_simulation(to_string(scheme)));
  }
  EXPECT_EQ(parse_simulated_scheme("simulated-dynamic-tree"), (SimulatedScheme{Simulation::dynamic_tree, 8}));
  EXPECT_EQ(to_string(parse_simulated_scheme("simulated-fp8")), "simulated-fp8:8");
  EXPECT_FALSE(names_simulation("dynamic-tree:4"));
  EXPECT_TRUE(names_simulation("simulated-nonsense"));
}

TEST(SimulatedScheme, CarriesRepairs) {
  const SimulatedScheme scheme = parse_simulated_scheme("simulated-linear-row+truncation+overflow");
  EXPECT_EQ(scheme.repairs, (LinearRepairs{.overflow = true, .truncation = true}));
  EXPECT_EQ(to_string(scheme), "simulated-linear-row:8+overflow+truncation");
  EXPECT_EQ(parse_simulated_scheme(to_string(scheme)), scheme);
  EXPECT_EQ(parse_simulated_scheme("simulated-linear:8+all").repairs, (LinearRepairs{true, true, true, true, true}));
  EXPECT_EQ(parse_linear_repairs("zero-point,range"), (LinearRepairs{.range = true, .zero_point = true}));
  for (const char* text : {"", "overflow,", "rounding", "overflow+range", "none"})
    EXPECT_THROW(parse_linear_repairs(text), UsageError) << text;
  EXPECT_THROW(parse_simulated_scheme("simulated-fp8+overflow"), UsageError);
  EXPECT_THROW(parse_simulated_scheme("simulated-linear+"), UsageError);
}

TEST(SimulatedScheme, UnknownOnesAreRefusedWithTheList) {
  for (const char* text : {"", "simulated", "simulated-tree", "simulated-dynamic-tree:2", "simulated-dynamic-tree:9",
                           "simulated-dynamic-tree:", "simulated-dynamic-tree:4:row", "simulated-fp8:7", "linear:4",
                           "simulated-linear:-8", "simulated-linear: 8"}) {
    try {
      parse_simulated_scheme(text);
      ADD_FAILURE() << text;
    } catch (const UsageError& error) {
      for (const SimulationTraits& traits : simulation_table())
        EXPECT_THAT(error.what(), HasSubstr(std::string(traits.name)));
    }
  }
}

// ---- What the values need

TEST(BitsNeeded, CountsDistinctValuesOfARow) {
  const auto need = [](const std::vector<float>& values, const Shape& shape) {
    const ValueNeed result = bits_needed(view(values, shape));
    return std::pair(result.distinct, result.bits);
  };
  EXPECT_EQ(need({5}, {1, 1}), std::pair(int64_t{1}, 0));
  EXPECT_EQ(need({5, 5, -5}, {1, 3}), std::pair(int64_t{2}, 1));
  EXPECT_EQ(need({0.0F, -0.0F, 1, 2}, {1, 4}), std::pair(int64_t{3}, 2)) << "zeros are one value";
  EXPECT_EQ(need({1, 1, 2, 3}, {2, 2}), std::pair(int64_t{2}, 1)) << "the largest of the rows";
  EXPECT_EQ(need({1, 2, 3, 4, 5, 6, 7, 8}, {1, 1, 2, 4}), std::pair(int64_t{4}, 2)) << "rows of a slice";
  EXPECT_EQ(need({1, 2, 3, 4, 5}, {1, 5}), std::pair(int64_t{5}, 3));
}

TEST(BitsNeeded, EqualsTheSizeOfASet) {
  const Shape shape{3, 4099};
  const std::vector<float> values = simulated(uniform(shape.elements(), 5), shape, "simulated-dynamic-tree:8");
  size_t most = 0;
  for (size_t row = 0; row < 3; ++row)
    most = std::max(most, std::set<float>(values.begin() + row * 4099, values.begin() + (row + 1) * 4099).size());
  EXPECT_EQ(bits_needed(view(values, shape)).distinct, static_cast<int64_t>(most));
}

TEST(BitsNeeded, AreMoreThanTheNotebooksClaim) {
  const Shape shape{8, 4096};
  const std::vector<float> weights = uniform(shape.elements(), 6);
  for (int bits = 3; bits <= 6; ++bits) {
    const std::vector<float> values = simulated(weights, shape, "simulated-dynamic-tree:" + std::to_string(bits));
    EXPECT_EQ(bits_needed(view(values, shape)).bits, 8) << "claimed: " << bits;
  }
}

}  // namespace
}  // namespace nibblenet
