#include "training/compression/adam.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibblenet {
namespace {

/// Algorithm 1 of the paper, in double, with steps relative to the values' root mean square.
TEST(Adam, FollowsThePaper) {
  std::vector<float> values = {1, -2, 0.5F, 0};
  std::vector<double> expected(values.begin(), values.end()), means(4), squares(4);
  Adam adam(4);
  for (int64_t number = 1; number <= 20; ++number) {
    std::vector<float> gradients;
    for (size_t i = 0; i < 4; ++i)
      gradients.push_back(static_cast<float>(std::sin(static_cast<double>(number) * (1.5 + static_cast<double>(i)))));
    double mean_square = 0;
    for (const double value : expected) mean_square += value * value / 4;
    for (size_t i = 0; i < 4; ++i) {
      const auto gradient = static_cast<double>(gradients[i]);
      means[i] = 0.9 * means[i] + 0.1 * gradient;
      squares[i] = 0.999 * squares[i] + 0.001 * gradient * gradient;
      const double mean = means[i] / (1 - std::pow(0.9, static_cast<double>(number)));
      const double square = squares[i] / (1 - std::pow(0.999, static_cast<double>(number)));
      expected[i] -= 0.01 * std::sqrt(mean_square) * mean / std::sqrt(square);
    }
    adam.step(values, gradients, 0.01, number);
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(static_cast<double>(values[i]), expected[i], 1e-5) << number;
  }
}

TEST(Adam, WithoutAGradientNothingMoves) {
  std::vector<float> values = {1, 2};
  Adam adam(2);
  for (int64_t number = 1; number <= 3; ++number) adam.step(values, std::vector<float>{0, 1}, 0.1, number);
  EXPECT_EQ(values[0], 1);
  EXPECT_LT(values[1], 2);
}

TEST(Adam, GoesOnFromWhatItSaved) {
  std::vector<float> whole = {1, -3}, cut = whole;
  const std::vector<float> gradients = {0.5F, -0.25F}, others = {-0.125F, 1};
  Adam uninterrupted(2), first(2), second(2);
  for (Adam* adam : {&uninterrupted, &first}) adam->step(adam == &first ? cut : whole, gradients, 0.1, 1);
  StateDict momenta;
  first.save(momenta, "w.scales");
  second.restore(momenta, "w.scales");
  uninterrupted.step(whole, others, 0.1, 2);
  second.step(cut, others, 0.1, 2);
  EXPECT_EQ(whole, cut);
  EXPECT_THROW(Adam(3).restore(momenta, "w.scales"), ShapeError);
  EXPECT_THROW(Adam(2).restore(momenta, "b.scales"), FormatError);
}

}  // namespace
}  // namespace nibblenet
