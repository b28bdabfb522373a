#include "layers/network/guesses.h"

#include <gtest/gtest.h>

#include <limits>

#include "engine/core/error.h"

namespace nibblenet::testing {
namespace {

std::vector<int64_t> labels_of(const std::vector<Guess>& guesses) {
  std::vector<int64_t> labels;
  for (const Guess& guess : guesses) labels.push_back(guess.label);
  return labels;
}

TEST(Guesses, TheBestComeFirstAndTheFirstOfEquals) {
  const std::vector<float> logits = {1.0F, 3.0F, 2.0F, 3.0F};
  EXPECT_EQ(labels_of(best_guesses(logits, 3)), (std::vector<int64_t>{1, 3, 2}));
  EXPECT_EQ(labels_of(best_guesses(logits, 9)), (std::vector<int64_t>{1, 3, 2, 0}));
  EXPECT_TRUE(best_guesses(logits, 0).empty());
}

TEST(Guesses, ProbabilitiesAreThoseOfAllClasses) {
  const std::vector<Guess> best = best_guesses(std::vector<float>{1000.0F, 1000.0F, -1000.0F}, 1);
  EXPECT_EQ(best.at(0).probability, 0.5F);
}

TEST(Guesses, WhatIsNoNumberIsRefused) {
  for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    EXPECT_THROW(best_guesses(std::vector<float>{0.0F, wrong}, 1), Error);
}

}  // namespace
}  // namespace nibblenet::testing
