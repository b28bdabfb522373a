#include "engine/core/random.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <set>

namespace nibblenet {
namespace {

TEST(Mix64, IsTheFinalizerOfSplitmix64) {
  // First outputs of splitmix64 seeded with 0 (Vigna's reference): the state advances by the golden
  // ratio.
  EXPECT_EQ(mix64(0x9E3779B97F4A7C15ULL), 0xE220A8397B1DCDAFULL);
  EXPECT_EQ(mix64(2 * 0x9E3779B97F4A7C15ULL), 0x6E789E6AA1B965F4ULL);
  EXPECT_EQ(mix64(0), 0U);
}

TEST(Random, IsAFunctionOfSeedStreamAndCounter) {
  Random sequence(7, 3);
  for (uint64_t i = 0; i < 100; ++i) EXPECT_EQ(sequence.bits(), random_bits(7, 3, i));

  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 10; ++seed)
    for (uint64_t stream = 0; stream < 10; ++stream)
      for (uint64_t counter = 0; counter < 10; ++counter) seen.insert(random_bits(seed, stream, counter));
  EXPECT_EQ(seen.size(), 1000U);
}

TEST(Random, UniformStaysBelowOne) {
  EXPECT_EQ(uniform_from_bits(0), 0.0F);
  EXPECT_EQ(uniform_from_bits(~uint64_t{0}), 1.0F - 0x1p-24F);
  Random random(1);
  double sum = 0;
  constexpr int draws = 100000;
  for (int i = 0; i < draws; ++i) sum += static_cast<double>(random.uniform());
  // The mean of n uniforms deviates by 1/sqrt(12 n); five of those.
  EXPECT_NEAR(sum / draws, 0.5, 5 / std::sqrt(12.0 * draws));
}

TEST(Random, BelowReachesEveryNumberUnderItsBound) {
  Random random(2);
  std::array<int, 7> counts{};
  for (int i = 0; i < 7000; ++i) ++counts.at(random.below(7));
  for (const int count : counts) EXPECT_NEAR(count, 1000, 5 * std::sqrt(1000.0));
  EXPECT_EQ(random.below(1), 0U);
}

}  // namespace
}  // namespace nibblenet
