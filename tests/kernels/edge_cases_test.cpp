#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/kernels/schemes.h"
#include "tests/support/test_backend.h"

// Edge cases that all backends treat alike: NaN, infinities, ties, padding, ends of ranges.

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::dropped;
using testing::float_weight;
using testing::linear;
using testing::make_test_backend;
using testing::on;
using testing::output_of;
using testing::packed_weight;
using testing::quantized;
using testing::same_bits;
using testing::uniform;
using testing::Values;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

class Dropout : public ::testing::Test {
 protected:
  Values mask(float probability, DropoutKey key, const Shape& shape = {1000, 101}) {
    return dropped(*backend_, Values(shape, 1.0F), probability, key);
  }
  std::unique_ptr<Backend> backend_ = make_test_backend();
};

TEST_F(Dropout, TheMaskIsAFunctionOfTheKey) {
  const Values expected = mask(0.5F, {1, 2, 0});
  EXPECT_EQ(mask(0.5F, {1, 2, 0}), expected);
  for (const DropoutKey& other : {DropoutKey{2, 2, 0}, DropoutKey{1, 3, 0}, DropoutKey{1, 2, 1}})
    EXPECT_NE(mask(0.5F, other), expected) << other.seed << " " << other.stream << " " << other.offset;
}

TEST_F(Dropout, TheOffsetMovesAlongTheSequence) {
  // The second half of a batch, run alone, gets the mask it has in the whole.
  const Values whole = mask(0.5F, {1, 2, 10}, {4, 33});
  const Values half = mask(0.5F, {1, 2, 10 + 2 * 33}, {2, 33});
  EXPECT_TRUE(std::ranges::equal(half.data, std::span(whole.data).last(half.data.size())));
}

TEST_F(Dropout, KeepsItsShareAndScalesIt) {
  for (const float probability : {0.1F, 0.5F, 0.9F}) {
    const Values y = mask(probability, {1, 2, 0});
    const auto count = static_cast<double>(y.data.size());
    const double p = static_cast<double>(probability);
    const auto kept = static_cast<double>(std::ranges::count(y.data, 1.0F / (1.0F - probability)));
    EXPECT_EQ(kept + static_cast<double>(std::ranges::count(y.data, 0.0F)), count) << "only 0 and 1 / (1 - p)";
    EXPECT_NEAR(kept, count * (1 - p), 4 * std::sqrt(count * p * (1 - p))) << "four sigma of a binomial";
  }
}

TEST_F(Dropout, TheBackwardPassDrawsTheSameMask) {
  // Forward and backward are one map, so a row of x and of dy must lose the same elements.
  const Values x = uniform({7, 129}, 1), dy = uniform({7, 129}, 2);
  const DropoutKey key = {5, 6, 7};
  const Values y = dropped(*backend_, x, 0.4F, key), dx = dropped(*backend_, dy, 0.4F, key);
  for (size_t i = 0; i < y.data.size(); ++i) EXPECT_EQ(y.data[i] == 0.0F, dx.data[i] == 0.0F) << i;
}

TEST_F(Dropout, ProbabilitiesAtTheEnds) {
  const Values x = uniform({3, 17}, 1);
  EXPECT_TRUE(same_bits(dropped(*backend_, x, 0.0F, {1, 2, 3}), x));
  EXPECT_EQ(dropped(*backend_, x, 1.0F, {1, 2, 3}), Values(x.shape));
}

TEST(Relu, KeepsNaNAndCutsTheRest) {
  const auto backend = make_test_backend();
  for (const int64_t rows : {1, 2}) {  // 6 elements, and 12: quads
    const std::vector<float> before = {nan, -1.0F, 0.0F, 2.0F, -infinity, infinity};
    const std::vector<float> after = {nan, 0.0F, 0.0F, 2.0F, 0.0F, infinity};
    Values x({rows, 6}), expected({rows, 6});
    for (size_t i = 0; i < x.data.size(); ++i) {
      x.data[i] = before[i % 6];
      expected.data[i] = after[i % 6];
    }
    const auto input = on(*backend, x);
    EXPECT_TRUE(same_bits(
        output_of(*backend, x.shape, [&](TensorView<float> y) { backend->relu_forward(y, input.view()); }), expected));
  }
}

/// Both results of max pooling an image of one channel.
struct Pooled {
  std::vector<float> y;
  std::vector<uint8_t> argmax;
};

Pooled max_pool(const Shape& shape, const std::vector<float>& pixels, Window window, bool record) {
  const auto backend = make_test_backend();
  Values x(shape);
  x.data = pixels;
  const auto input = on(*backend, x);
  const Shape output = {shape[0], window.output(shape[1]), window.output(shape[2]), shape[3]};
  Tensor<uint8_t> argmax(*backend, record ? output : Shape{0}, MemoryCategory::data);
  const TensorView<uint8_t> positions = record ? argmax.view() : TensorView<uint8_t>();
  Pooled pooled;
  pooled.y = output_of(*backend, output, [&](TensorView<float> y) {
               backend->max_pool2d_forward(y, positions, input.view(), window);
             }).data;
  pooled.argmax.resize(static_cast<size_t>(argmax.elements()));
  backend->copy_to_host(pooled.argmax.data(), argmax.data(), pooled.argmax.size());
  return pooled;
}

TEST(MaxPool, KeepsNaNAndTakesTheFirstMaximum) {
  struct Case {
    std::string what;
    std::vector<float> pixels;  ///< 2 x 2
    float y;
    uint8_t argmax;
  };
  const std::vector<Case> cases = {
      {"all equal", {5, 5, 5, 5}, 5, 0},
      {"a tie in the second row", {1, 2, 7, 7}, 7, 2},
      {"a tie down a column", {1, 7, 2, 7}, 7, 1},
      {"zeros of either sign", {-1, -0.0F, 0.0F, -1}, -0.0F, 1},
      {"NaN first", {nan, 9, 1, 2}, nan, 0},
      {"NaN in between", {1, 9, nan, 2}, nan, 2},
      {"NaN last", {1, 9, 3, nan}, nan, 3},
      {"NaN among infinities", {infinity, nan, infinity, -infinity}, nan, 1},
      {"nothing above -inf", {-infinity, -infinity, -infinity, -infinity}, -infinity, 0},
  };
  for (const Case& c : cases) {
    for (const bool record : {true, false}) {
      const Pooled pooled = max_pool({1, 2, 2, 1}, c.pixels, {2, 2, 0}, record);
      ASSERT_EQ(pooled.y.size(), 1U);
      EXPECT_EQ(std::bit_cast<uint32_t>(pooled.y[0]), std::bit_cast<uint32_t>(c.y)) << c.what;
      if (record) {
        EXPECT_EQ(pooled.argmax, std::vector<uint8_t>{c.argmax}) << c.what;
      }
    }
  }
}

TEST(MaxPool, NeverChoosesPadding) {
  // Every window of a 3x3 one with padding 1 over a 2x2 image; position 4 is the window's centre.
  // The first element that lies in the image wins, even where none is above -infinity: its gradient
  // must not fall into the padding.
  const Pooled pooled = max_pool({1, 2, 2, 1}, std::vector<float>(4, -infinity), {3, 1, 1}, true);
  EXPECT_EQ(pooled.y, std::vector<float>(4, -infinity));
  EXPECT_EQ(pooled.argmax, (std::vector<uint8_t>{4, 3, 1, 0}));
}

TEST(FusedRelu, KeepsNaNInLinearAndConvolution) {
  // A NaN passes through every form of ReLU, so that a diverged network shows.
  const auto backend = make_test_backend();
  Values x({1, 1, 1, 3});
  x.data = {1.0F, nan, 2.0F};
  const auto filters = float_weight(*backend, {2, 3, 1, 1});
  const auto matrix = float_weight(*backend, {2, 3});
  const auto packed = packed_weight(*backend, {2, 3});
  Values flat({1, 3});
  flat.data = x.data;
  const Values bias(Shape{2});
  const auto all_nan = [](const Values& y) {
    return std::ranges::all_of(y.data, [](float value) { return std::isnan(value); });
  };
  EXPECT_TRUE(all_nan(linear(*backend, flat, *matrix, bias, Epilogue::relu)));
  EXPECT_TRUE(all_nan(linear(*backend, flat, *packed, bias, Epilogue::relu)));
  EXPECT_TRUE(all_nan(conv2d(*backend, x, *filters, bias, {1, 1, 0}, Epilogue::relu)));
}

}  // namespace
}  // namespace nibblenet
