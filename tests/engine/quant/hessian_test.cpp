#include "engine/quant/hessian.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/core/random.h"
#include "tests/engine/quant/hessians.h"

namespace nibblenet {
namespace {

std::vector<float> random_rows(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> rows(static_cast<size_t>(count));
  for (float& value : rows) value = random.uniform() - 0.3F;
  return rows;
}

TEST(Hessian, AreTheMeanProductsWhateverTheBatches) {
  for (const int64_t inputs : {1, 3, 64, 129}) {
    const int64_t rows = 1950;
    const std::vector<float> x = random_rows(rows * inputs, 1);
    HessianAccumulator accumulator(inputs);
    for (const auto& [first, count] :
         {std::pair<int64_t, int64_t>{0, 7}, {7, 0}, {7, 1}, {8, 42}, {50, 700}, {750, 600}, {1350, 550}, {1900, 50}})
      accumulator.add({x.data() + first * inputs, {count, inputs}});
    const Hessian hessian = std::move(accumulator).finish();
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t j = 0; j < inputs; ++j) {
        double expected = 0;
        for (int64_t row = 0; row < rows; ++row)
          expected += static_cast<double>(x[static_cast<size_t>(row * inputs + i)]) *
                      static_cast<double>(x[static_cast<size_t>(row * inputs + j)]) / static_cast<double>(rows);
        // Products of less than 1, summed in float32 and divided by their number.
        ASSERT_NEAR(hessian.at(i, j), expected, 50 * 0x1p-24) << i << ", " << j;
        ASSERT_EQ(hessian.at(i, j), hessian.at(j, i));
      }
  }
}

TEST(Hessian, RefuseRowsOfAnotherLengthAndNoRows) {
  HessianAccumulator accumulator(3);
  const std::vector<float> x(8);
  EXPECT_THROW(accumulator.add({x.data(), {2, 4}}), ShapeError);
  EXPECT_THROW(std::move(accumulator).finish(), Error);
  EXPECT_THROW(HessianAccumulator(0), ShapeError);
  EXPECT_THROW(HessianAccumulator(int64_t{1} << 40), ShapeError);
}

TEST(Hessian, RoundTripThroughTheirTriangle) {
  HessianAccumulator accumulator(37);
  const std::vector<float> x = random_rows(37 * 20, 2);
  accumulator.add({x.data(), {20, 37}});
  const Hessian hessian = std::move(accumulator).finish();
  const std::vector<float> triangle = upper_triangle(hessian);
  EXPECT_EQ(triangle.size(), 37U * 38 / 2);
  EXPECT_EQ(from_upper_triangle(triangle, 37).values, hessian.values);
  EXPECT_EQ(hessian.diagonal()[5], hessian.at(5, 5));
}

TEST(Hessian, OfAFileAreChecked) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_NO_THROW(from_upper_triangle(std::vector<float>{1, 2, 4}, 2)) << "two inputs, one twice the other";
  EXPECT_NO_THROW(from_upper_triangle(std::vector<float>{0, 0, 4}, 2)) << "a dead input";
  const std::vector<std::vector<float>> wrong = {
      {nan, 0, 1},  {1, nan, 1},  {infinity, 0, 1}, {1, infinity, 1}, {-1, 0, 1},
      {0, 0.1F, 1}, {1, 2.1F, 4}, {1, 2, 4, 5},     {1, 2},           {}};
  for (const std::vector<float>& values : wrong)
    EXPECT_THROW(from_upper_triangle(values, 2), FormatError) << ::testing::PrintToString(values);
}

TEST(OutputError, IsTheMeanSquaredErrorOfTheOutputs) {
  const int64_t rows = 30, inputs = 12, outputs = 4;
  const std::vector<float> x = random_rows(rows * inputs, 3), w = random_rows(outputs * inputs, 4);
  std::vector<float> v = w;
  for (float& value : v) value = std::round(4 * value) / 4;
  HessianAccumulator accumulator(inputs);
  accumulator.add({x.data(), {rows, inputs}});
  const auto errors = testing::output_error({w.data(), {outputs, inputs}}, {v.data(), {outputs, inputs}},
                                            std::move(accumulator).finish());
  for (int64_t k = 0; k < outputs; ++k) {
    double expected = 0;
    for (int64_t row = 0; row < rows; ++row) {
      double difference = 0;
      for (int64_t i = 0; i < inputs; ++i)
        difference += static_cast<double>(x[static_cast<size_t>(row * inputs + i)]) *
                      (static_cast<double>(w[static_cast<size_t>(k * inputs + i)]) -
                       static_cast<double>(v[static_cast<size_t>(k * inputs + i)]));
      expected += difference * difference / static_cast<double>(rows);
    }
    EXPECT_NEAR(errors[static_cast<size_t>(k)], expected, 1e-5 * expected);
  }
}

}  // namespace
}  // namespace nibblenet
