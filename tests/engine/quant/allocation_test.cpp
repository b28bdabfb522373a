#include "engine/quant/allocation.h"

#include <gtest/gtest.h>

#include <limits>

#include "engine/core/error.h"
#include "engine/core/random.h"

namespace nibblenet {
namespace {

using Layers = std::vector<std::vector<AllocationChoice>>;

/// The least loss of all combinations within the budgets; among equals, the fewest bytes.
std::optional<Allocation> brute_force(const Layers& layers, int64_t budget, int64_t other = INT64_MAX) {
  std::optional<Allocation> best;
  std::vector<size_t> choices(layers.size());
  for (bool more = true; more;) {
    Allocation all{choices};
    for (size_t i = 0; i < layers.size(); ++i) {
      all.bytes += layers[i][choices[i]].bytes;
      all.loss += layers[i][choices[i]].loss;
      all.other += layers[i][choices[i]].other;
    }
    if (all.bytes <= budget && all.other <= other &&
        (!best || all.loss < best->loss || (all.loss == best->loss && all.bytes < best->bytes)))
      best = all;
    more = false;
    for (size_t i = 0; i < choices.size() && !more; ++i) {
      more = ++choices[i] < layers[i].size();
      if (!more) choices[i] = 0;
    }
  }
  return best;
}

/// Losses are multiples of 1/64: their sums are exact in any order.
Layers random_layers(uint64_t seed) {
  Random random(seed);
  Layers layers(1 + random.below(5));
  for (auto& layer : layers) {
    layer.resize(1 + random.below(4));
    for (AllocationChoice& choice : layer)
      choice = {static_cast<int64_t>(random.below(30)), static_cast<double>(random.below(64)) / 64 - 0.125};
  }
  return layers;
}

TEST(Allocation, EqualsBruteForce) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const Layers layers = random_layers(seed);
    const std::vector<Allocation> front = allocation_front(layers);
    for (int64_t budget = 0; budget <= 150; budget += 7) {
      const auto expected = brute_force(layers, budget);
      const auto found = best_within(front, budget);
      ASSERT_EQ(found.has_value(), expected.has_value()) << "seed " << seed << ", budget " << budget;
      if (!found) continue;
      EXPECT_EQ(found->loss, expected->loss) << "seed " << seed << ", budget " << budget;
      EXPECT_EQ(found->bytes, expected->bytes) << "seed " << seed << ", budget " << budget;
    }
  }
}

TEST(Allocation, EqualsBruteForceWithinTwoBudgets) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Layers layers = random_layers(seed);
    Random random(seed + 1000);
    for (auto& layer : layers)
      for (AllocationChoice& choice : layer) choice.other = static_cast<int64_t>(random.below(30));
    const std::vector<Allocation> front = allocation_front(layers);
    for (int64_t budget = 0; budget <= 150; budget += 25)
      for (int64_t other = 0; other <= 150; other += 25) {
        const auto expected = brute_force(layers, budget, other);
        const auto found = best_within(front, budget, other);
        ASSERT_EQ(found.has_value(), expected.has_value()) << "seed " << seed << ", " << budget << ", " << other;
        if (!found) continue;
        EXPECT_EQ(found->loss, expected->loss) << "seed " << seed << ", " << budget << ", " << other;
        EXPECT_LE(found->bytes, budget);
        EXPECT_LE(found->other, other);
      }
  }
}

TEST(Allocation, TheFrontFallsAndItsChoicesAddUp) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const Layers layers = random_layers(seed);
    const std::vector<Allocation> front = allocation_front(layers);
    ASSERT_FALSE(front.empty());
    for (size_t i = 0; i < front.size(); ++i) {
      ASSERT_EQ(front[i].choices.size(), layers.size());
      int64_t bytes = 0;
      for (size_t layer = 0; layer < layers.size(); ++layer) bytes += layers[layer][front[i].choices[layer]].bytes;
      EXPECT_EQ(front[i].bytes, bytes);
      if (i > 0) {
        EXPECT_LT(front[i - 1].bytes, front[i].bytes);
        EXPECT_GT(front[i - 1].loss, front[i].loss);
      }
    }
  }
}

TEST(Allocation, NeverExceedsTheBudget) {
  const std::vector<Allocation> front = allocation_front(Layers{{{10, 0.0}, {4, 1.0}}, {{7, 0.0}, {3, 0.5}}});
  EXPECT_FALSE(best_within(front, 6).has_value());
  EXPECT_EQ(best_within(front, 7)->choices, (std::vector<size_t>{1, 1}));
  EXPECT_EQ(best_within(front, 13)->choices, (std::vector<size_t>{0, 1}));
  EXPECT_EQ(best_within(front, 1000)->choices, (std::vector<size_t>{0, 0}));
}

TEST(Allocation, TheSmallestWithinALossIsFoundByFewMeasurements) {
  std::vector<Allocation> front;
  for (int64_t bytes = 0; bytes < 100; ++bytes) front.push_back({.bytes = bytes});
  for (int64_t wanted = 0; wanted < 100; ++wanted) {
    int measured = 0;
    const auto loss = [&](const Allocation& allocation) {
      ++measured;
      return static_cast<double>(99 - allocation.bytes);
    };
    EXPECT_EQ(smallest_within(front, static_cast<double>(99 - wanted), loss)->bytes, wanted);
    EXPECT_LE(measured, 8) << "1 + log2(100)";
  }
  EXPECT_FALSE(smallest_within(front, -1, [](const Allocation&) { return 0.0; }).has_value());
  EXPECT_FALSE(smallest_within(front, 1, [](const Allocation&) { return std::nan(""); }).has_value());
}

TEST(Allocation, RefusesWhatCannotBeCompared) {
  EXPECT_THROW(allocation_front(Layers{{{1, 0.0}}, {}}), UsageError);
  EXPECT_THROW(allocation_front(Layers{{{1, std::numeric_limits<double>::quiet_NaN()}}}), UsageError);
}

}  // namespace
}  // namespace nibblenet
