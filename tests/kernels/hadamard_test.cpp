#include "engine/quant/hadamard.h"

#include <gtest/gtest.h>

#include <utility>

#include "tests/kernels/values.h"
#include "tests/support/test_backend.h"

// The rotation of activations, on every backend, against the reference.

namespace nibblenet {
namespace {

using testing::integers;
using testing::make_test_backend;
using testing::same_bits;
using testing::uniform;
using testing::Values;

class HadamardTest : public ::testing::Test {
 protected:
  static Values expected(Values x, Rotation rotation) {
    hadamard_transform(x.data, rotation);
    return x;
  }

  Tensor<float> on_device(const Values& x) {
    Tensor<float> copy(*backend_, x.shape, MemoryCategory::data);
    backend_->copy_from_host(copy.data(), x.data.data(), copy.view().span().size_bytes());
    return copy;
  }
  Values from_device(const Tensor<float>& x) {
    Values copy(x.shape());
    backend_->copy_to_host(copy.data.data(), x.data(), x.view().span().size_bytes());
    return copy;
  }

  std::unique_ptr<Backend> backend_ = make_test_backend();
};

TEST_F(HadamardTest, HasTheBitsOfTheReference) {
  for (const Shape& shape : {Shape{1, 8}, Shape{3, 24}, Shape{2, 5, 3, 64}, Shape{7, 192}, Shape{1, 1, 1, 384},
                             Shape{5, 9216}, Shape{0, 16}}) {
    const Values x = uniform(shape, 3);
    const Rotation rotation{hadamard_block(shape[shape.rank() - 1])};
    const Tensor<float> from = on_device(x);
    Tensor<float> to(*backend_, shape, MemoryCategory::data);
    backend_->hadamard(to.view(), from.view(), rotation);
    EXPECT_TRUE(same_bits(from_device(to), expected(x, rotation))) << to_string(shape);
    EXPECT_TRUE(same_bits(from_device(from), x)) << "the input of " << to_string(shape) << " changed";
    to = on_device(x);
    backend_->hadamard(to.view(), to.view(), rotation);
    EXPECT_TRUE(same_bits(from_device(to), expected(x, rotation))) << to_string(shape) << " in place";
  }
}

TEST_F(HadamardTest, BlocksMayLieSideBySide) {
  for (const auto& [shape, rotation] : {std::pair{Shape{3, 16, 3, 3}, Rotation{16, 9}},
                                        {Shape{5, 192, 1, 1}, Rotation{64, 1}},
                                        {Shape{2, 256, 5, 5}, Rotation{256, 25}},
                                        {Shape{70, 24}, Rotation{8, 3}}}) {
    const Values x = uniform(shape, 4);
    Tensor<float> weights = on_device(x);
    backend_->hadamard(weights.view(), weights.view(), rotation);
    EXPECT_TRUE(same_bits(from_device(weights), expected(x, rotation))) << to_string(shape);
  }
}

/// Sums of integers and their quarter are exact in fp16, too.
TEST_F(HadamardTest, RotatesFp16Values) {
  if (backend_->preferred_precision() != Precision::float16) GTEST_SKIP() << "this backend has no fp16 activations";
  const Values x = integers({3, 5, 5, 48}, 5);
  Buffer<f16> halves(*backend_, x.data.size(), MemoryCategory::data);
  const TensorView<f16> view(halves.data(), x.shape);
  backend_->convert(view, on_device(x).view());
  backend_->hadamard(view, view, {16});
  Tensor<float> y(*backend_, x.shape, MemoryCategory::data);
  backend_->convert(y.view(), view);
  EXPECT_TRUE(same_bits(from_device(y), expected(x, {16})));
}

}  // namespace
}  // namespace nibblenet
