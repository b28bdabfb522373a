#include "training/pruning.h"

#include <gtest/gtest.h>

#include <vector>

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
