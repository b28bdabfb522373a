#include "training/compression/pruning.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/core/random.h"

namespace nibblenet {
namespace {

TEST(RampedFraction, IsCubicAndNeverFalls) {
  EXPECT_DOUBLE_EQ(ramped_fraction(0.2, 0.9, 0), 0.2);
  EXPECT_EQ(ramped_fraction(0.2, 0.9, 1), 0.9);
  EXPECT_NEAR(ramped_fraction(0, 0.8, 0.5), 0.8 * (1 - 0.125), 1e-12);  // Zhu and Gupta 2017, eq. 1
  EXPECT_EQ(ramped_fraction(0.7, 0.5, 0), 0.7);
  EXPECT_EQ(ramped_fraction(0.7, 0.5, 1), 0.7);
}

TEST(PruningSchedule, EndsWhereTheRampEnds) {
  for (const int64_t steps : {1, 2, 10, 59, 1000, 20000}) {
    for (const double until : {0.0, 0.6, 1.0}) {
      const PruningSchedule schedule(until, steps);
      int64_t times = 0, last = -1;
      for (int64_t step = 0; step < steps; ++step) {
        if (!schedule.due(step)) continue;
        ++times;
        last = step;
      }
      SCOPED_TRACE(::testing::Message() << steps << " steps until " << until);
      EXPECT_TRUE(schedule.due(0));
      EXPECT_GE(times, 1);
      EXPECT_LE(times, 122);
      EXPECT_EQ(schedule.progress(last), 1.0);
      EXPECT_NEAR(static_cast<double>(last), until * static_cast<double>(steps), 1.0);
    }
  }
}

TEST(PruneSmallest, TakesTheSmallestMagnitudesAndOfTiesTheFirst) {
  std::vector<float> weights = {3, -1, 0, 2, -2, 1, 4, 1};
  const std::span<float> layer(weights);
  prune_smallest({&layer, 1}, 0.375);
  EXPECT_EQ(weights, (std::vector<float>{3, 0, 0, 2, -2, 0, 4, 1}));
  prune_smallest({&layer, 1}, 0.25);  // there are more zeros already
  EXPECT_EQ(weights, (std::vector<float>{3, 0, 0, 2, -2, 0, 4, 1}));
  prune_smallest({&layer, 1}, 0.625);
  EXPECT_EQ(weights, (std::vector<float>{3, 0, 0, 0, -2, 0, 4, 0}));
  EXPECT_EQ(count_zeros(weights), 5);
}

TEST(PruneSmallest, SplitsAnyWeightsAsSortingThemWould) {
  Random random(1, 1);
  std::vector<float> weights(10'000);
  for (float& weight : weights) weight = std::ldexp(random.uniform() - 0.5F, static_cast<int>(random.below(9)) - 6);
  for (const int64_t wanted : {1, 17, 5'000, 9'999, 10'000}) {
    std::vector<float> pruned = weights, sorted = weights;
    const std::span<float> layer(pruned);
    prune_smallest({&layer, 1}, static_cast<double>(wanted) / 10'000);
    std::ranges::sort(sorted, {}, [](float weight) { return std::fabs(weight); });
    EXPECT_EQ(count_zeros(pruned), wanted);
    for (size_t i = 0; i < weights.size(); ++i)
      ASSERT_EQ(pruned[i] == 0.0F, std::fabs(weights[i]) <= std::fabs(sorted[static_cast<size_t>(wanted - 1)]));
  }
}

TEST(PruneSmallest, OneThresholdForAllLayers) {
  std::vector<float> small = {0.1F, -0.2F, 0.3F}, large = {10, 0.15F, -20};
  const std::vector<std::span<float>> layers = {small, large};
  prune_smallest(layers, 0.5);
  EXPECT_EQ(small, (std::vector<float>{0, 0, 0.3F}));
  EXPECT_EQ(large, (std::vector<float>{10, 0, -20}));
  prune_smallest({}, 0.5);
}

}  // namespace
}  // namespace nibblenet
