#include "engine/quant/trellis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <vector>

#include "engine/core/random.h"
#include "tests/engine/quant/normal_numbers.h"

namespace nibblenet {
namespace {

using testing::normal;
using testing::squares;

constexpr std::array all_quarters = {2, 3, 4, 5, 6, 8, 12, 16};

TEST(Trellis, ValuesAreThoseOfTheDefinition) {
  double sum = 0, sum_of_squares = 0;
  for (uint32_t window = 0; window < trellis_states; ++window) {
    const uint32_t x = window * 2917270597U + 3731473840U;
    int expected = -126;
    for (int byte = 0; byte < 4; ++byte) expected += static_cast<int>(x >> 8 * byte & 63U);
    ASSERT_EQ(trellis_value(window, false), expected) << window;
    sum += expected;
    sum_of_squares += expected * expected;
  }
  EXPECT_NEAR(sum / trellis_states, 0, 0.5);
  EXPECT_NEAR(std::sqrt(sum_of_squares / trellis_states), static_cast<double>(trellis_scale_to), 0.3);
}

TEST(Trellis, WeightsReadWindowsOfTheirString) {
  for (const int quarters : all_quarters) {
    SCOPED_TRACE(quarters);
    const TrellisLayout layout{130, 3, quarters};
    std::vector<uint8_t> codes(static_cast<size_t>(layout.bytes()));
    Random random(1);
    for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.bits());
    EXPECT_EQ(layout.length(0), 192) << "padded to a multiple of 64";
    EXPECT_EQ(layout.string_bytes(0), 192 * quarters / 32);
    for (const int64_t channel : {0, 1, 2, 3, 63, 64, 129})
      for (const int64_t input : {0, 2}) {
        const uint8_t* string = codes.data() + input * layout.string_bytes(0);
        const int64_t bits = layout.string_bytes(0) * 8, first = channel * quarters / 4;
        uint32_t window = 0;
        for (int bit = 0; bit < 12; ++bit) {
          const int64_t at = (first + bit) % bits;
          window |= static_cast<uint32_t>(string[at / 8] >> at % 8 & 1) << bit;
        }
        const bool again = channel > 0 && (channel - 1) * quarters / 4 == first;
        EXPECT_EQ(trellis_value_at(codes.data(), layout, channel, input), trellis_value(window, again));
      }
  }
}

TEST(Trellis, StringsFollowEachOther) {
  const TrellisLayout layout{600, 5, 8};  // two sequences of 256 and one of 88, padded to 128
  EXPECT_EQ(layout.sequences(), 3);
  EXPECT_EQ(layout.length(2), 128);
  EXPECT_EQ(layout.offset(1, 0), 5 * 64);
  EXPECT_EQ(layout.offset(2, 3), 2 * 5 * 64 + 3 * 32);
  EXPECT_EQ(layout.string_bytes(), 2 * 5 * 64 + 5 * 32);
}

/// By rate, a tenth above what was measured on more numbers. The best scalar code of 2 bits has
/// 0.1175 (Max 1960).
TEST(TrellisEncoder, ReachesItsErrorOnNormalNumbers) {
  const std::map<int, double> expected = {{2, 0.568}, {3, 0.393},  {4, 0.279},   {5, 0.200},
                                          {6, 0.143}, {8, 0.0741}, {12, 0.0193}, {16, 0.0054}};
  for (const auto& [quarters, error] : expected) {
    TrellisEncoder encoder(quarters);
    const std::vector<float> targets = normal(2048, 3), steps(256, 1.0F / trellis_scale_to);
    std::vector<uint8_t> string(128);
    std::vector<int16_t> values(256);
    double sum = 0;
    for (size_t first = 0; first < targets.size(); first += 256)
      sum += encoder.encode(targets.data() + first, steps.data(), 256, string.data(), values.data());
    EXPECT_LT(sum / squares(targets), 1.1 * error) << quarters;
  }
}

TEST(TrellisEncoder, ReportsTheValuesThatADecoderReads) {
  for (const int quarters : all_quarters)
    for (const int64_t length : {64, 192, 256}) {
      const std::vector<float> targets = normal(256, 5), steps(256, 0.03F);
      std::vector<uint8_t> string(128);
      std::vector<int16_t> values(256);
      TrellisEncoder encoder(quarters);
      const double error = encoder.encode(targets.data(), steps.data(), length, string.data(), values.data());
      double expected = 0;
      for (int64_t i = 0; i < length; ++i) {
        const auto at = static_cast<size_t>(i);
        ASSERT_EQ(trellis_value_at(string.data(), {length, 1, quarters}, i, 0), values[at]);
        expected += std::pow(static_cast<double>(targets[at]) - 0.03F * static_cast<double>(values[at]), 2);
      }
      EXPECT_NEAR(error, expected, 1e-6 * expected);
    }
}

/// The string is the best of those that begin with its window, so no other end with one bit changed
/// is better. At one bit a weight.
TEST(TrellisEncoder, NoNeighbourOfItsStringIsBetterFromTheSameBegin) {
  constexpr int quarters = 4;
  const std::vector<float> targets = normal(64, 9), steps(64, 1.0F / trellis_scale_to);
  std::vector<uint8_t> string(8);
  std::vector<int16_t> values(64);
  const double best = TrellisEncoder(quarters).encode(targets.data(), steps.data(), 64, string.data(), values.data());
  for (int bit = trellis_window; bit < 64; ++bit) {
    std::vector<uint8_t> other = string;
    other[static_cast<size_t>(bit / 8)] ^= static_cast<uint8_t>(1 << bit % 8);
    double error = 0;
    for (int64_t i = 0; i < 64; ++i)
      error += std::pow(static_cast<double>(targets[static_cast<size_t>(i)]) -
                            trellis_value_at(other.data(), {64, 1, quarters}, i, 0) / 37.0,
                        2);
    EXPECT_GE(error, best * (1 - 1e-6)) << "bit " << bit;
  }
}

TEST(TrellisEncoder, ZerosOfAChannelCostNothing) {
  const std::vector<float> targets = normal(64, 2);
  std::vector<float> steps(64, 0.03F);
  std::fill_n(steps.begin(), 32, 0.0F);
  std::vector<uint8_t> string(16);
  std::vector<int16_t> values(64);
  const double half = TrellisEncoder(8).encode(targets.data(), steps.data(), 64, string.data(), values.data());
  std::ranges::fill(steps, 0.03F);
  const double all = TrellisEncoder(8).encode(targets.data(), steps.data(), 64, string.data(), values.data());
  EXPECT_LT(half, 0.7 * all) << "the other half has all bits";
}

}  // namespace
}  // namespace nibblenet
