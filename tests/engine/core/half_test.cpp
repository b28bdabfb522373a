#include "engine/core/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace nibblenet {
namespace {

constexpr uint16_t infinity = 0x7C00;

/// The definition, in double: every finite f16 is mantissa x 2^exponent.
double value_of(uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1F;
  const int mantissa = bits & 0x3FF;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

bool is_nan(uint16_t bits) { return (bits & 0x7FFF) > infinity; }

TEST(F16, EveryPatternDecodesToItsDefinitionAndBack) {
  for (uint32_t pattern = 0; pattern <= 0xFFFF; ++pattern) {
    const auto bits = static_cast<uint16_t>(pattern);
    const float value = f16_to_f32(bits);
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << pattern;
    if (is_nan(bits)) {
      ASSERT_TRUE(std::isnan(value)) << pattern;
      ASSERT_TRUE(is_nan(f32_to_f16(value))) << pattern;
      continue;
    }
    if ((bits & 0x7FFF) == infinity) {
      ASSERT_TRUE(std::isinf(value)) << pattern;
    } else {
      ASSERT_EQ(static_cast<double>(value), value_of(bits)) << pattern;
    }
    ASSERT_EQ(f32_to_f16(value), bits) << pattern;
  }
}

TEST(F16, RoundsToNearestAndTiesToEven) {
  for (uint16_t lower = 0; lower < infinity; ++lower) {
    const auto upper = static_cast<uint16_t>(lower + 1);
    // Above the largest finite value the spacing goes on: 65520 is half way to what would be 65536.
    const double above = upper == infinity ? 65536.0 : value_of(upper);
    const auto middle = static_cast<float>((value_of(lower) + above) / 2);
    ASSERT_EQ(f32_to_f16(middle), lower % 2 == 0 ? lower : upper) << lower;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.0F)), lower) << lower;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 1e9F)), upper) << lower;
    ASSERT_EQ(f32_to_f16(-middle), 0x8000 | (lower % 2 == 0 ? lower : upper)) << lower;
  }
}

TEST(F16, ExtremesOfFloat32) {
  using Limits = std::numeric_limits<float>;
  EXPECT_EQ(f32_to_f16(0.0F), 0x0000);
  EXPECT_EQ(f32_to_f16(-0.0F), 0x8000);
  EXPECT_EQ(f32_to_f16(Limits::denorm_min()), 0x0000);
  EXPECT_EQ(f32_to_f16(-Limits::min()), 0x8000);
  EXPECT_EQ(f32_to_f16(65504.0F), 0x7BFF);
  EXPECT_EQ(f32_to_f16(Limits::max()), infinity);
  EXPECT_EQ(f32_to_f16(Limits::lowest()), 0x8000 | infinity);
  EXPECT_EQ(f32_to_f16(-Limits::infinity()), 0x8000 | infinity);
  // A NaN whose payload lies only in the bits that are dropped must not turn into Inf.
  EXPECT_TRUE(is_nan(f32_to_f16(std::bit_cast<float>(0x7F800001U))));
}

TEST(Bf16, IsTheUpperHalfOfFloat32) {
  EXPECT_EQ(bf16_to_f32(0x3F80), 1.0F);
  EXPECT_EQ(bf16_to_f32(0xC049), -3.140625F);
  EXPECT_EQ(bf16_to_f32(0x0001), std::bit_cast<float>(0x00010000U));
  EXPECT_TRUE(std::isinf(bf16_to_f32(0x7F80)));
  EXPECT_TRUE(std::isnan(bf16_to_f32(0x7FC0)));
}

}  // namespace
}  // namespace nibblenet
