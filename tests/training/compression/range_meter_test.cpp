#include "training/compression/range_meter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/core/random.h"

namespace nibblenet {
namespace {

/// `count` values of a long tail, positive and negative.
std::vector<float> tailed(size_t count) {
  Random random(3, 1);
  std::vector<float> values(count);
  for (float& value : values) value = std::log(1e-30F + random.uniform()) * (random.below(2) == 0 ? 1.0F : -1.0F);
  return values;
}

TEST(RangeMeter, IsThePercentileWhateverTheParts) {
  for (const size_t count : {size_t{1}, size_t{99'999}, size_t{100'000}, size_t{345'678}}) {
    const std::vector<float> values = tailed(count);
    std::vector<float> magnitudes = values;
    for (float& value : magnitudes) value = std::fabs(value);
    std::ranges::sort(magnitudes, std::greater());
    for (const size_t part : {size_t{1}, size_t{7919}, count}) {
      RangeMeter meter(static_cast<int64_t>(count));
      for (size_t first = 0; first < count; first += part)
        meter.add(std::span(values).subspan(first, std::min(part, count - first)));
      EXPECT_EQ(meter.largest(), magnitudes[count / 100'000]) << count << " values, " << part << " at a time";
    }
  }
}

TEST(RangeMeter, AFewInputsAmongZerosCountAll) {
  std::vector<float> values(1'000'000);
  values[5] = -2;
  values[6] = 0.5F;
  RangeMeter meter(static_cast<int64_t>(values.size()));
  meter.add(values);
  EXPECT_EQ(meter.largest(), 2) << "the percentile is 0, which no scale can be";
}

TEST(RangeMeter, IsNothingWithoutNumbers) {
  EXPECT_EQ(RangeMeter(0).largest(), 0);
  RangeMeter meter(100);
  meter.add(std::vector<float>{0, -0.0F, NAN});
  EXPECT_EQ(meter.largest(), 0);
}

}  // namespace
}  // namespace nibblenet
