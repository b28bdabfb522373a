#include "engine/core/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace nibblenet {
namespace {

TEST(Shape, CountsElements) {
  const Shape weights{64, 3, 11, 11};
  EXPECT_EQ(weights.rank(), 4);
  EXPECT_EQ(weights.elements(), 64 * 3 * 11 * 11);
  EXPECT_EQ(weights.inner_elements(), 3 * 11 * 11);
  EXPECT_EQ(to_string(weights), "64x3x11x11");
  EXPECT_EQ(Shape{}.elements(), 1);
  EXPECT_EQ(to_string(Shape{}), "scalar");
  EXPECT_EQ((Shape{0, 7}).elements(), 0);
  EXPECT_EQ((Shape{0, 7}).inner_elements(), 0);
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
}

TEST(Shape, RefusesWhatItCannotHold) {
  constexpr int64_t huge = int64_t{1} << 40;
  EXPECT_THROW((Shape{1, 1, 1, 1, 1}), ShapeError);
  EXPECT_THROW((Shape{2, -1}), ShapeError);
  EXPECT_THROW((Shape{huge, huge}), ShapeError);
}

TEST(Tensor, ViewsShareItsMemory) {
  HostMemory memory;
  Tensor<float> tensor(memory, {4, 3}, MemoryCategory::weights);
  std::iota(tensor.view().begin(), tensor.view().end(), 0.0F);

  const TensorView<float> rows = tensor.view().slice(1, 2);
  EXPECT_EQ(rows.shape(), (Shape{2, 3}));
  EXPECT_EQ(rows[0], 3.0F);
  rows[5] = 100.0F;
  EXPECT_EQ(tensor.data()[8], 100.0F);

  const TensorView<const float> flat(tensor.data(), {12});
  EXPECT_THROW(flat.slice(10, 3), ShapeError);
  EXPECT_THROW(flat.slice(-1, 1), ShapeError);
  EXPECT_EQ(flat.slice(12, 0).elements(), 0);
}

TEST(Tensor, MovesWithoutCopying) {
  HostMemory memory;
  Tensor<int32_t> first(memory, {5}, MemoryCategory::data);
  const int32_t* data = first.data();
  const Tensor<int32_t> second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(second.elements(), 5);
  EXPECT_TRUE(Tensor<float>().empty());
  EXPECT_EQ(Tensor<float>().elements(), 0);
}

TEST(ExpectShape, NamesTheOperandAndBothShapes) {
  EXPECT_NO_THROW(expect_shape({2, 3}, {2, 3}, "y"));
  try {
    expect_shape({2, 3}, {3, 2}, "output of conv1");
    FAIL() << "unequal shapes were accepted";
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "output of conv1: expected 3x2, got 2x3");
  }
}

}  // namespace
}  // namespace nibblenet
