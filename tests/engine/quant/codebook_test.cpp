#include "engine/quant/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "engine/core/random.h"
#include "engine/io/json.h"
#include "tests/engine/quant/cases.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<float> ascending(const Codebook& codebook) {
  std::vector<float> values;
  for (int i = 0; i < codebook.count; ++i)
    values.push_back(codebook.values[codebook.ordered_codes[static_cast<size_t>(i)]]);
  return values;
}

float nearest(const Codebook& codebook, float x) { return codebook.values[encode(codebook, x)]; }

TEST(Codebook, EqualsTheGoldenOnes) {
  std::ifstream file(testing::golden_folder() / "codebooks.json");
  ASSERT_TRUE(file) << testing::golden_folder();
  const auto golden = nlohmann::json::parse(file);
  ASSERT_FALSE(golden.empty());
  for (const auto& [name, expected] : golden.items()) {
    SCOPED_TRACE(name);
    const Scheme scheme = testing::golden_scheme(name);
    const Codebook codebook = make_codebook(scheme.method, scheme.bits);
    const std::vector<float> values = ascending(codebook);
    const auto expected_values = expected.at("values").get<std::vector<double>>();
    const double expected_scale = expected.at("scale_to").get<double>();
    ASSERT_EQ(values.size(), expected_values.size());
    // Linear's values are integers here and fractions in golden data: value / scale_to must agree.
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(values[i] / codebook.scale_to, static_cast<float>(expected_values[i] / expected_scale)) << i;
  }
}

class EveryCodebook : public ::testing::TestWithParam<MethodTraits> {
 protected:
  template <class Check>
  void for_each_width(Check check) {
    for (int bits = GetParam().min_bits; bits <= GetParam().max_bits; ++bits) {
      SCOPED_TRACE(::testing::Message() << GetParam().name << ":" << bits);
      check(make_codebook(GetParam().method, bits));
    }
  }
};

TEST_P(EveryCodebook, IsStrictlyAscendingWithinItsWidthAndHoldsZero) {
  for_each_width([](const Codebook& codebook) {
    ASSERT_GT(codebook.count, 1);
    ASSERT_LE(codebook.count, 1 << codebook.bits);
    const std::vector<float> values = ascending(codebook);
    for (size_t i = 1; i < values.size(); ++i) ASSERT_LT(values[i - 1], values[i]);
    for (int i = 0; i < codebook.count; ++i)
      ASSERT_LT(codebook.ordered_codes[static_cast<size_t>(i)], 1 << codebook.bits);
    EXPECT_EQ(values.back(), codebook.scale_to);
    EXPECT_EQ(codebook.values[codebook.zero_code], 0.0F);
    EXPECT_FALSE(std::signbit(codebook.values[codebook.zero_code]));
    for (const float value : codebook.values) EXPECT_TRUE(std::isfinite(value));
  });
}

TEST_P(EveryCodebook, EncodesEachValueToItsCodeAndTheRestToTheNearest) {
  for_each_width([](const Codebook& codebook) {
    const std::vector<float> values = ascending(codebook);
    for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(encode(codebook, values[i]), codebook.ordered_codes[i]);
    EXPECT_EQ(nearest(codebook, infinity), values.back());
    EXPECT_EQ(nearest(codebook, -infinity), values.front());
    EXPECT_EQ(encode(codebook, -0.0F), codebook.zero_code);

    Random random(1);
    for (int i = 0; i < 2000; ++i) {
      const float x = (random.uniform() * 2.2F - 1.1F) * codebook.scale_to * (i % 2 == 0 ? 1.0F : 0.01F);
      double smallest = std::numeric_limits<double>::infinity();
      for (const float value : values)
        smallest = std::min(smallest, std::fabs(static_cast<double>(x) - static_cast<double>(value)));
      ASSERT_EQ(std::fabs(static_cast<double>(x) - static_cast<double>(nearest(codebook, x))), smallest) << x;
    }
  });
}

TEST_P(EveryCodebook, DecidesExactlyAtEveryMidpoint) {
  const bool ties_to_even = GetParam().method == Method::linear || GetParam().method == Method::fp8_e4m3 ||
                            GetParam().method == Method::fp8_e5m2 || GetParam().method == Method::stable_embedding_fp8;
  for_each_width([&](const Codebook& codebook) {
    const std::vector<float> values = ascending(codebook);
    for (size_t i = 1; i < values.size(); ++i) {
      const double middle = (static_cast<double>(values[i - 1]) + static_cast<double>(values[i])) / 2;
      const float near = static_cast<float>(middle);
      ASSERT_EQ(nearest(codebook, std::nextafter(near, -infinity)), values[i - 1]);
      ASSERT_EQ(nearest(codebook, std::nextafter(near, infinity)), values[i]);
      if (static_cast<double>(near) != middle) {
        ASSERT_EQ(nearest(codebook, near), static_cast<double>(near) < middle ? values[i - 1] : values[i]);
      } else if (ties_to_even) {
        // The even one of two neighbours is a whole multiple of twice their distance.
        const float chosen = nearest(codebook, near);
        ASSERT_EQ(std::fmod(chosen, 2 * (values[i] - values[i - 1])), 0.0F) << near << " to " << chosen;
      } else {
        ASSERT_EQ(nearest(codebook, near), values[i - 1]);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Methods, EveryCodebook, ::testing::ValuesIn(testing::untrained_methods()),
                         [](const auto& method) { return nibblenet::testing::identifier(method.param.name); });

TEST(Linear, CodesAreTheIntegersShifted) {
  for (int bits = 2; bits <= 8; ++bits) {
    const Codebook codebook = make_codebook(Method::linear, bits);
    const int m = (1 << (bits - 1)) - 1;
    EXPECT_EQ(codebook.scale_to, static_cast<float>(m));
    for (int value = -m; value <= m; ++value) EXPECT_EQ(encode(codebook, static_cast<float>(value)), value + m);
    EXPECT_EQ(codebook.values[static_cast<size_t>(2 * m + 1)], 0.0F) << "the unused code";
    for (int value = -m; value < m; ++value) {
      const float middle = static_cast<float>(value) + 0.5F;
      EXPECT_EQ(nearest(codebook, middle), std::nearbyint(middle)) << "half to even";
    }
  }
}

TEST(DynamicTree, HoldsTheInvariantsOfItsConstruction) {
  const std::vector<float> three = {-0.775F, -0.325F, -0.055F, 0.0F, 0.055F, 0.325F, 0.775F, 1.0F};
  EXPECT_EQ(ascending(make_codebook(Method::dynamic_tree, 3)), three);

  for (int bits = 3; bits <= 8; ++bits) {
    const std::vector<float> values = ascending(make_codebook(Method::dynamic_tree, bits));
    ASSERT_EQ(values.size(), size_t{1} << bits);
    EXPECT_NEAR(std::accumulate(values.begin(), values.end(), 0.0), 1.0, 1e-6) << "all but 1 come in pairs";

    double positive = 0;
    for (const float value : values) positive += value > 0 ? static_cast<double>(value) : 0;
    double expected = 1;
    for (int e = 0; e <= bits - 2; ++e) expected += 0.55 * std::ldexp(1.0, bits - 2 - e) * std::pow(10.0, -e);
    EXPECT_NEAR(positive, expected, 1e-6 * expected);

    if (bits == 8) continue;
    const std::vector<float> wider = ascending(make_codebook(Method::dynamic_tree, bits + 1));
    for (const float value : values) {
      if (value == 0.0F || value == 1.0F) continue;
      const bool contained = std::ranges::any_of(
          wider, [&](float other) { return std::fabs(other - value / 10) <= 1e-6F * std::fabs(value); });
      EXPECT_TRUE(contained) << value << " / 10 at " << bits + 1 << " bits";
    }
  }
}

struct RoundingCase {
  Method method;
  float x;
  float expected;
};

TEST(Fp8, RoundsAndSaturatesAsOcpSays) {
  const std::vector<RoundingCase> cases = {
      {Method::fp8_e4m3, 17.0F, 16.0F},       {Method::fp8_e4m3, 19.0F, 20.0F},
      {Method::fp8_e4m3, 0x1p-10F, 0.0F},     {Method::fp8_e4m3, 0x1.8p-9F, 0x1p-8F},
      {Method::fp8_e4m3, 464.0F, 448.0F},     {Method::fp8_e4m3, 465.0F, 448.0F},
      {Method::fp8_e4m3, 1e30F, 448.0F},      {Method::fp8_e5m2, 61440.0F, 57344.0F},
      {Method::fp8_e5m2, 0x1p-17F, 0.0F},     {Method::fp8_e5m2, 0x1.8p-16F, 0x1p-15F},
      {Method::fp8_e5m2, infinity, 57344.0F}, {Method::fp8_e5m2, 1.125F, 1.0F},
      {Method::fp8_e5m2, 1.375F, 1.5F},
  };
  for (const RoundingCase& rounding : cases) {
    const Codebook codebook = make_codebook(rounding.method, 8);
    EXPECT_EQ(nearest(codebook, rounding.x), rounding.expected) << rounding.x;
    EXPECT_EQ(nearest(codebook, -rounding.x), -rounding.expected) << -rounding.x;
  }
}

TEST(Fp8, CodesAreTheBitPatterns) {
  const std::vector<std::tuple<Method, int, float>> patterns = {
      {Method::fp8_e4m3, 0x01, 0x1p-9F},  {Method::fp8_e4m3, 0x07, 0.875F * 0x1p-6F},
      {Method::fp8_e4m3, 0x08, 0x1p-6F},  {Method::fp8_e4m3, 0x38, 1.0F},
      {Method::fp8_e4m3, 0x7E, 448.0F},   {Method::fp8_e4m3, 0xFE, -448.0F},
      {Method::fp8_e5m2, 0x01, 0x1p-16F}, {Method::fp8_e5m2, 0x03, 0.75F * 0x1p-14F},
      {Method::fp8_e5m2, 0x04, 0x1p-14F}, {Method::fp8_e5m2, 0x3C, 1.0F},
      {Method::fp8_e5m2, 0x7B, 57344.0F}, {Method::fp8_e5m2, 0xBC, -1.0F},
      {Method::fp4, 0x1, 0.5F},           {Method::fp4, 0x2, 1.0F},
      {Method::fp4, 0x7, 6.0F},           {Method::fp4, 0xF, -6.0F},
  };
  for (const auto& [method, code, value] : patterns) {
    const Codebook codebook = make_codebook(method, method == Method::fp4 ? 4 : 8);
    EXPECT_EQ(codebook.values[static_cast<size_t>(code)], value) << code;
    EXPECT_EQ(encode(codebook, value), code);
  }
  // NaN and Inf patterns are never chosen and decode to something harmless; -0 decodes as itself.
  const Codebook e4m3 = make_codebook(Method::fp8_e4m3, 8);
  for (const size_t code : {0x7FU, 0xFFU}) EXPECT_EQ(e4m3.values[code], 0.0F);
  const Codebook e5m2 = make_codebook(Method::fp8_e5m2, 8);
  for (const size_t code : {0x7CU, 0x7DU, 0x7FU, 0xFCU, 0xFFU}) EXPECT_EQ(e5m2.values[code], 0.0F);
  EXPECT_TRUE(std::signbit(e4m3.values[0x80]) && std::signbit(e5m2.values[0x80]));
  EXPECT_EQ(e4m3.count, 253);
  EXPECT_EQ(e5m2.count, 247);
}

TEST(Nf4, HasThePublishedThresholds) {
  const std::vector<float> published = {-0.8480964F, -0.6106329F, -0.4599953F, -0.3396795F, -0.2346074F,
                                        -0.1379117F, -0.0455250F, 0.0397901F,  0.1202553F,  0.2035213F,
                                        0.2920138F,  0.3893125F,  0.5016634F,  0.6427869F,  0.8614784F};
  const Codebook codebook = make_codebook(Method::nf4, 4);
  for (size_t i = 0; i < published.size(); ++i) EXPECT_NEAR(codebook.thresholds[i], published[i], 1e-7F);
}

TEST(TrainedCodebook, CodesAreRanks) {
  const std::vector<float> values = {-2.0F, -0.5F, -0.5F, 1.0F, 3.0F};
  const Codebook codebook = make_codebook(values, 3, 1.0F);
  EXPECT_EQ(codebook.count, 5);
  EXPECT_EQ(ascending(codebook), values);
  EXPECT_EQ(encode(codebook, -0.5F), 1) << "the lower one of equal values";
  EXPECT_EQ(encode(codebook, 0.25F), 2) << "ties go to the lower one";
  EXPECT_EQ(encode(codebook, 100.0F), 4);
  EXPECT_EQ(codebook.zero_code, 2) << "the nearest to 0";

  const std::vector<float> one = {7.0F};
  EXPECT_EQ(encode(make_codebook(one, 1, 1.0F), -1.0F), 0);
}

TEST(TrainedCodebook, RefusesBadValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::vector<float>> bad = {{}, {0, 1, 2, 3, 4}, {1, 0}, {0, nan}, {0, infinity}};
  for (const std::vector<float>& values : bad) EXPECT_THROW(make_codebook(values, 2, 1.0F), UsageError);
  const std::vector<float> good = {0, 1};
  EXPECT_THROW(make_codebook(good, 0, 1.0F), UsageError);
  EXPECT_THROW(make_codebook(good, 9, 1.0F), UsageError);
  EXPECT_THROW(make_codebook(good, 2, 0.0F), UsageError);
  EXPECT_THROW(make_codebook(good, 2, nan), UsageError);
  EXPECT_THROW(make_codebook(Method::nf4, 3), UsageError);
  EXPECT_THROW(make_codebook(Method::kmeans, 3), UsageError);
}

}  // namespace
}  // namespace nibblenet
