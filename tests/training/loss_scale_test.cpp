#include "training/loss_scale.h"

#include <gtest/gtest.h>

namespace nibblenet {
namespace {

TEST(LossScale, HalvesWhereGradientsOverflowAndDoublesAfterMuchPatience) {
  LossScale scale;
  const double first = scale.value;
  scale.update(true);
  scale.update(false);
  EXPECT_EQ(scale.value, first / 2);
  EXPECT_EQ(scale.skipped, 1);
  for (int64_t step = 1; step < LossScale::patience; ++step) scale.update(true);
  EXPECT_EQ(scale.value, first / 2);
  scale.update(true);
  EXPECT_EQ(scale.value, first);
  EXPECT_EQ(scale.finite_steps, 0);
}

TEST(LossScale, StaysInItsRange) {
  LossScale scale{.value = LossScale::largest, .finite_steps = LossScale::patience - 1};
  scale.update(true);
  EXPECT_EQ(scale.value, LossScale::largest);
  while (scale.value > 1) scale.update(false);
  EXPECT_THROW(scale.update(false), Error);
}

}  // namespace
}  // namespace nibblenet
