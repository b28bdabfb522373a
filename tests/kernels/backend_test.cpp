#include "kernels/backend.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/kernels/values.h"
#include "tests/support/test_backend.h"

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::from;
using testing::integers;
using testing::make_test_backend;
using testing::on;
using testing::output_of;
using testing::uniform;
using testing::Values;

class BackendTest : public ::testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = make_test_backend();
};

TEST_F(BackendTest, CopiesThereAndBack) {
  for (const Shape& shape : {Shape{0}, Shape{1}, Shape{7, 0, 3}, Shape{5, 3, 11, 2}}) {
    const Values values = uniform(shape, 1);
    EXPECT_EQ(from(*backend_, on(*backend_, values).view()), values) << to_string(shape);
  }
  EXPECT_NO_THROW(backend_->copy_from_host(nullptr, nullptr, 0));
  EXPECT_NO_THROW(backend_->copy_to_host(nullptr, nullptr, 0));
}

TEST_F(BackendTest, GathersRows) {
  struct Case {
    Shape x;
    std::vector<int64_t> rows;
  };
  const std::vector<Case> cases = {{{1, 1}, {0}}, {{5, 3}, {4, 0, 0, 2}},  // in any order, and more than once
                                   {{7}, {6, 1}}, {{3, 2, 5, 3}, {2, 1, 0}}, {{3, 4}, {}}, {{3, 0}, {1, 2}}};
  for (const Case& c : cases) {
    const Values x = uniform(c.x, 1);
    std::vector<int64_t> sizes(c.x.sizes().begin(), c.x.sizes().end());
    sizes[0] = static_cast<int64_t>(c.rows.size());
    Values expected{Shape(sizes)};
    const auto columns = static_cast<size_t>(c.x.inner_elements());
    for (size_t i = 0; i < c.rows.size(); ++i)
      for (size_t column = 0; column < columns; ++column)
        expected.data[i * columns + column] = x.data[static_cast<size_t>(c.rows[i]) * columns + column];

    const auto input = on(*backend_, x);
    EXPECT_EQ(output_of(*backend_, expected.shape,
                        [&](TensorView<float> y) { backend_->training().gather_rows(y, input.view(), c.rows); }),
              expected)
        << to_string(c.x);
  }
}

TEST_F(BackendTest, FloatWeightsAreACopyAndCountTheirBytes) {
  for (const Shape& shape : {Shape{3, 17}, Shape{8, 16, 3, 3}}) {
    const Values values = uniform(shape, 1);
    const auto weight = backend_->make_weight(values.view());
    EXPECT_FALSE(weight->packed());
    EXPECT_EQ(weight->shape(), shape);
    EXPECT_EQ(from(*backend_, weight->values()), values);
    EXPECT_EQ(weight->resident().total(), shape.elements() * 4);
    EXPECT_EQ(static_cast<int64_t>(backend_->meter().live(MemoryCategory::weights)), shape.elements() * 4);
  }
  EXPECT_EQ(backend_->meter().live(MemoryCategory::weights), 0U);
}

TEST_F(BackendTest, AChangedWeightTakesEffect) {
  // Convolutions keep a copy in another order; two windows and batches may need two orders.
  const Shape shape = {16, 16, 3, 3};
  const auto weight = backend_->make_weight(integers(shape, 1).view());
  const Values bias = integers({16}, 2);
  for (uint64_t seed = 3; seed < 6; ++seed) {
    const Values values = integers(shape, seed);
    backend_->copy_from_host(weight->values().data(), values.data.data(), values.data.size() * sizeof(float));
    weight->changed();
    for (const int64_t batch : {1, 4}) {
      for (const Window& window : {Window{3, 1, 1}, Window{3, 2, 0}}) {
        const Values x = integers({batch, 6, 5, 16}, seed);
        EXPECT_EQ(conv2d(*backend_, x, *weight, bias, window),
                  conv2d(*backend_, x, *backend_->make_weight(values.view()), bias, window));
      }
    }
  }
}

TEST_F(BackendTest, SgdStepsInPlaceAndLeavesTheRestAlone) {
  const auto step = [&](const Values& w, const Values& v, const Values& dw, SgdParameters parameters) {
    auto weights = on(*backend_, w);
    auto velocity = on(*backend_, v);
    const auto gradient = on(*backend_, dw);
    backend_->training().sgd_step(weights.view(), velocity.view(), gradient.view(), parameters);
    return std::pair(from(*backend_, weights.view()), from(*backend_, velocity.view()));
  };
  const Values w = integers({33}, 1), v = integers({33}, 2), dw = integers({33}, 3);
  const SgdParameters parameters = {.learning_rate = 0.5F, .momentum = 0.5F, .weight_decay = 0.25F};
  const auto [weights, velocity] = step(w, v, dw, parameters);
  for (size_t i = 0; i < w.data.size(); ++i) {  // dyadic numbers: exact
    EXPECT_EQ(velocity.data[i], 0.5F * v.data[i] + dw.data[i] + 0.25F * w.data[i]);
    EXPECT_EQ(weights.data[i], w.data[i] - 0.5F * velocity.data[i]);
  }
  const SgdParameters of_bias = SgdParameters{0.5F, 0.5F, 0.25F, true, 4.0F}.of_bias();
  EXPECT_EQ(of_bias.learning_rate * of_bias.weight_decay, 0.5F * 0.25F);
  EXPECT_EQ(of_bias.learning_rate, 2.0F);
  EXPECT_FALSE(of_bias.keep_zeros);
  const Values nothing({0});
  EXPECT_EQ(step(nothing, nothing, nothing, parameters), std::pair(nothing, nothing));
}

TEST_F(BackendTest, AddsInPlace) {
  for (const int64_t count : {0, 1, 33, 1031}) {
    const Values before = integers({count}, 1), x = integers({count}, 2);
    auto sums = on(*backend_, before);
    const auto values = on(*backend_, x);
    backend_->training().add(sums.view(), std::as_const(values).view());
    const Values after = from(*backend_, sums.view());
    for (size_t i = 0; i < after.data.size(); ++i) EXPECT_EQ(after.data[i], before.data[i] + x.data[i]);
  }
}

TEST_F(BackendTest, AnAverageMovesByItsShareOfTheDifference) {
  for (const int64_t count : {0, 1, 33, 1031}) {
    const Values before = integers({count}, 1), x = integers({count}, 2);
    auto average = on(*backend_, before);
    const auto values = on(*backend_, x);
    backend_->training().move_average(average.view(), std::as_const(values).view(), 0.25F);
    const Values after = from(*backend_, average.view());
    for (size_t i = 0; i < after.data.size(); ++i)  // dyadic numbers: exact
      EXPECT_EQ(after.data[i], before.data[i] + 0.25F * (x.data[i] - before.data[i]));
  }
}

}  // namespace
}  // namespace nibblenet
