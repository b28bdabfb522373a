#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "engine/core/random.h"
#include "tests/layers/host_layers.h"

// Gradients against central differences of the loss sum(y * r), r fixed. Operands are small
// integers, or multiples of what the layer divides by, and each layer is linear in each of them as
// far as the step reaches. Losses, differences and gradients are then exact in float32, and the
// tests ask for equality.

namespace nibblenet {
namespace {

using testing::distinct;
using testing::HostLayers;
using testing::integers;
using testing::uniform;
using testing::Values;

/// sum(y * r), in double.
double dot(const Values& y, const Values& r) {
  double sum = 0;
  for (size_t i = 0; i < y.data.size(); ++i) sum += static_cast<double>(y.data[i]) * static_cast<double>(r.data[i]);
  return sum;
}

/// `gradient` is (loss(x + h) - loss(x - h)) / 2h for the elements of x: for all where there are
/// few, else for some forty drawn ones.
void expect_differences(const Values& gradient, const std::function<double(const Values&)>& loss, Values x,
                        float h = 1) {
  ASSERT_EQ(gradient.shape, x.shape);
  const size_t every = x.data.size() / 40 + 1;
  for (size_t i = 0; i < x.data.size(); ++i) {
    if (every > 2 && random_bits(1, 0, i) % every != 0) continue;
    const float value = x.data[i];
    x.data[i] = value + h;
    const double above = loss(x);
    x.data[i] = value - h;
    const double below = loss(x);
    x.data[i] = value;
    EXPECT_EQ(gradient.data[i], (above - below) / (2.0 * static_cast<double>(h))) << "element " << i;
  }
}

class Gradient : public ::testing::Test {
 protected:
  HostLayers layers_{1};  // thousands of tiny runs: threads would only wait for each other
};

TEST_F(Gradient, Conv2d) {
  struct Case {
    Shape x;
    int64_t filters;
    Window window;
  };
  const std::vector<Case> cases = {
      {{1, 1, 1, 1}, 1, {1, 1, 0}},   {{2, 5, 4, 3}, 4, {3, 1, 1}},    {{1, 7, 6, 2}, 3, {3, 2, 0}},
      {{2, 6, 7, 1}, 5, {2, 3, 1}},   {{1, 13, 11, 3}, 2, {11, 4, 2}},  // as AlexNet's first
      {{1, 3, 3, 9}, 17, {3, 1, 2}},  {{1, 5, 5, 2}, 3, {5, 1, 2}},     // as its second
      {{1, 5, 5, 2}, 3, {1, 3, 0}},                                     // pixels that no window sees
      {{1, 2, 3, 2}, 2, {2, 1, 3}},                                     // windows of padding alone
      {{2, 4, 5, 16}, 16, {3, 1, 1}},                                   // whole vectors of channels
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} -> {}, size {}, stride {}, padding {}", to_string(c.x), c.filters, c.window.size,
                             c.window.stride, c.window.padding));
    const Values x = integers(c.x, 1);
    const Values w = integers({c.filters, c.x[3], c.window.size, c.window.size}, 2);
    const Values bias = integers({c.filters}, 3);
    const Values r = integers(conv2d_output_shape(x.shape, w.shape, c.window), 4);
    const auto gradients = layers_.conv2d_backward(r, x, w, c.window);
    const auto loss = [&](const Values& input, const Values& filters, const Values& offset) {
      return dot(layers_.conv2d(input, filters, offset, c.window), r);
    };
    expect_differences(
        gradients.x, [&](const Values& v) { return loss(v, w, bias); }, x);
    expect_differences(
        gradients.w, [&](const Values& v) { return loss(x, v, bias); }, w);
    expect_differences(
        gradients.bias, [&](const Values& v) { return loss(x, w, v); }, bias);
  }
}

TEST_F(Gradient, Linear) {
  struct Case {
    int64_t n, c, k;
  };
  for (const Case& c : {Case{1, 1, 1}, Case{3, 7, 5}, Case{9, 4, 131}, Case{5, 129, 3}}) {
    SCOPED_TRACE(fmt::format("{} x {} -> {}", c.n, c.c, c.k));
    const Values x = integers({c.n, c.c}, 1), w = integers({c.k, c.c}, 2), bias = integers({c.k}, 3);
    const Values r = integers({c.n, c.k}, 4);
    const auto gradients = layers_.linear_backward(r, x, w);
    const auto loss = [&](const Values& input, const Values& matrix, const Values& offset) {
      return dot(layers_.linear(input, matrix, offset), r);
    };
    expect_differences(
        gradients.x, [&](const Values& v) { return loss(v, w, bias); }, x);
    expect_differences(
        gradients.w, [&](const Values& v) { return loss(x, v, bias); }, w);
    expect_differences(
        gradients.bias, [&](const Values& v) { return loss(x, w, v); }, bias);
  }
}

TEST_F(Gradient, MaxPool2d) {
  struct Case {
    Shape x;
    Window window;
  };
  const std::vector<Case> cases = {
      {{1, 1, 1, 1}, {1, 1, 0}}, {{2, 5, 6, 3}, {3, 2, 0}}, {{1, 7, 7, 2}, {3, 2, 1}},    {{1, 4, 5, 1}, {2, 1, 1}},
      {{1, 6, 6, 2}, {2, 3, 0}}, {{3, 4, 3, 9}, {3, 1, 0}}, {{1, 15, 16, 1}, {15, 1, 7}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{}, size {}, stride {}, padding {}", to_string(c.x), c.window.size, c.window.stride,
                             c.window.padding));
    const Values x = distinct(c.x, 1);  // 4 apart: a step of 1 changes no maximum
    const Values r = integers(max_pool2d_output_shape(x.shape, c.window), 2);
    expect_differences(
        layers_.max_pool2d_backward(r, layers_.max_pool2d(x, c.window).argmax, x.shape, c.window),
        [&](const Values& v) { return dot(layers_.max_pool2d(v, c.window).y, r); }, x);
  }
}

TEST_F(Gradient, AdaptiveAveragePool2d) {
  struct Case {
    Shape x;
    int64_t p, q;
  };
  const std::vector<Case> cases = {
      {{1, 1, 1, 1}, 1, 1}, {{2, 6, 6, 3}, 6, 6}, {{1, 13, 9, 2}, 6, 6}, {{1, 5, 4, 2}, 3, 2},  // fewer pixels
      {{1, 3, 3, 2}, 6, 6}, {{1, 1, 1, 2}, 6, 6}, {{1, 7, 1, 1}, 6, 6},  {{1, 2, 9, 1}, 7, 4},  // more, or both
  };
  constexpr int64_t unit = 36;  // a multiple of every region of up to 3 x 3 pixels: averages are whole
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} -> {}x{}", to_string(c.x), c.p, c.q));
    const Values x = integers(c.x, 1, 3, unit);
    const Values r = integers({c.x[0], c.p, c.q, c.x[3]}, 2, 3, unit);
    expect_differences(
        layers_.adaptive_average_pool2d_backward(r, x.shape),
        [&](const Values& v) { return dot(layers_.adaptive_average_pool2d(v, c.p, c.q), r); }, x,
        static_cast<float>(unit));
  }
}

TEST_F(Gradient, Flatten) {
  for (const Shape& shape : {Shape{1, 1, 1, 1}, Shape{2, 3, 5, 7}, Shape{3, 6, 6, 2}}) {
    const Values x = integers(shape, 1);
    const Values r = integers({shape[0], shape.inner_elements()}, 2);
    SCOPED_TRACE(to_string(shape));
    expect_differences(
        layers_.flatten_backward(r, shape), [&](const Values& v) { return dot(layers_.flatten(v), r); }, x);
  }
}

TEST_F(Gradient, Relu) {
  Values x = integers({5, 17}, 1);
  for (float& value : x.data) value += 0.5F;  // away from the corner at 0
  const Values r = integers(x.shape, 2);
  expect_differences(
      layers_.relu_backward(r, layers_.relu(x)), [&](const Values& v) { return dot(layers_.relu(v), r); }, x, 0.25F);
}

TEST_F(Gradient, Dropout) {
  const DropoutKey key = {7, 3, 1000};
  const Values x = integers({5, 17}, 1), r = integers({5, 17}, 2);
  for (const float probability : {0.0F, 0.5F, 0.75F, 1.0F}) {  // factors of 1, 2, 4 and 0
    SCOPED_TRACE(probability);
    expect_differences(
        layers_.dropout_backward(r, probability, key),
        [&](const Values& v) { return dot(layers_.dropout(v, probability, key), r); }, x);
  }
}

/// -log softmax(row)[label], in double.
double cross_entropy_of(std::span<const double> row, int32_t label) {
  const double largest = std::ranges::max(row);
  double sum = 0;
  for (const double logit : row) sum += std::exp(logit - largest);
  return std::log(sum) - (row[static_cast<size_t>(label)] - largest);
}

/// N distributions over the classes, some of them of one class.
Values distributions(int64_t n, int64_t classes) {
  Values targets = uniform({n, classes}, 2);
  for (int64_t row = 0; row < n; ++row) {
    const auto begin = targets.data.begin() + row * classes;
    float sum = 0;
    for (auto p = begin; p != begin + classes; ++p) sum += * p = std::fabs(*p);
    for (auto p = begin; p != begin + classes; ++p) *p = row % 3 == 2 ? static_cast<float>(p == begin) : *p / sum;
  }
  return targets;
}

TEST_F(Gradient, SoftCrossEntropy) {
  // As CrossEntropy below; the losses of all classes count, each weighted by its target.
  constexpr double rounding = 4 * 0x1p-24;
  constexpr double h = 1e-5;
  for (const auto& [n, classes] : {std::pair<int64_t, int64_t>{1, 1}, {3, 10}, {7, 5}, {5, 41}}) {
    SCOPED_TRACE(fmt::format("{}x{}", n, classes));
    const Values logits = uniform({n, classes}, 1), targets = distributions(n, classes);
    const auto result = layers_.soft_cross_entropy(logits, targets);
    for (int64_t i = 0; i < n; ++i) {
      const auto begin = logits.data.begin() + i * classes;
      const std::vector<double> row(begin, begin + classes);
      const auto loss_of = [&, i = i, classes = classes](std::span<const double> z) {
        double loss = 0;
        for (int32_t k = 0; k < classes; ++k)
          loss += static_cast<double>(targets.data[static_cast<size_t>(i * classes + k)]) * cross_entropy_of(z, k);
        return loss;
      };
      EXPECT_NEAR(static_cast<double>(result.losses.data[static_cast<size_t>(i)]), loss_of(row), rounding);
      for (size_t k = 0; k < row.size(); ++k) {
        std::vector<double> above = row, below = row;
        above[k] += h;
        below[k] -= h;
        EXPECT_NEAR(static_cast<double>(result.dlogits.data[static_cast<size_t>(i * classes) + k]),
                    (loss_of(above) - loss_of(below)) / (2 * h) / static_cast<double>(n), rounding);
      }
    }
  }
}

TEST_F(Gradient, ALabelIsATargetOfOneClass) {
  const Values logits = uniform({4, 9}, 5);
  Values targets({4, 9});
  std::vector<int32_t> labels = {8, 0, 3, 3};
  for (size_t n = 0; n < labels.size(); ++n) targets.data[n * 9 + static_cast<size_t>(labels[n])] = 1.0F;
  const auto hard = layers_.cross_entropy(logits, labels), soft = layers_.soft_cross_entropy(logits, targets);
  EXPECT_EQ(hard.losses.data, soft.losses.data);
  EXPECT_EQ(hard.dlogits.data, soft.dlogits.data);
}

TEST_F(Gradient, AClassThatIsNoTargetMayBeImpossible) {
  const float never = -std::numeric_limits<float>::infinity();
  Values logits({1, 3}), targets({1, 3});
  logits.data = {0.0F, never, 0.0F};
  targets.data = {0.25F, 0.0F, 0.75F};
  for (const auto& result : {layers_.cross_entropy(logits, {2}), layers_.soft_cross_entropy(logits, targets)}) {
    EXPECT_FLOAT_EQ(result.losses.data[0], std::log(2.0F));
    EXPECT_EQ(result.dlogits.data[1], 0);
  }
}

TEST_F(Gradient, CrossEntropy) {
  // The loss is not linear, so differences come from a reference in double, which also checks the
  // losses. Both results are one float32 rounding of a value computed in double from float32
  // differences of logits: a few 2^-24, of the loss or of the gradient's size 1 / N. The
  // differences themselves err by h^2 / 6 and 2^-52 / h times that.
  constexpr double rounding = 4 * 0x1p-24;
  constexpr double h = 1e-5;
  struct Case {
    int64_t n, classes;
    float size;  ///< of the logits: at 50 the probabilities are 0 and 1 to float32
  };
  for (const Case& c : {Case{1, 1, 1.0F}, Case{3, 10, 1.0F}, Case{7, 5, 8.0F}, Case{5, 17, 50.0F}, Case{64, 2, 0.0F}}) {
    SCOPED_TRACE(fmt::format("{}x{}, logits of {}", c.n, c.classes, c.size));
    Values logits = uniform({c.n, c.classes}, 1);
    for (float& logit : logits.data) logit *= c.size;
    std::vector<int32_t> labels;
    for (int64_t n = 0; n < c.n; ++n) labels.push_back(static_cast<int32_t>(3 * n % c.classes));
    const auto result = layers_.cross_entropy(logits, labels);

    for (int64_t n = 0; n < c.n; ++n) {
      const auto begin = logits.data.begin() + n * c.classes;
      std::vector<double> row(begin, begin + c.classes);
      const int32_t label = labels[static_cast<size_t>(n)];
      const double loss = cross_entropy_of(row, label);
      EXPECT_NEAR(static_cast<double>(result.losses.data[static_cast<size_t>(n)]), loss,
                  rounding * std::max(1.0, static_cast<double>(c.size) * 2));
      for (int64_t k = 0; k < c.classes; ++k) {
        std::vector<double> above = row, below = row;
        above[static_cast<size_t>(k)] += h;
        below[static_cast<size_t>(k)] -= h;
        const double slope = (cross_entropy_of(above, label) - cross_entropy_of(below, label)) / (2 * h);
        EXPECT_NEAR(static_cast<double>(result.dlogits.data[static_cast<size_t>(n * c.classes + k)]),
                    slope / static_cast<double>(c.n),
                    rounding * std::max(1.0, static_cast<double>(c.size)) / static_cast<double>(c.n));
      }
    }
  }
}

}  // namespace
}  // namespace nibblenet
