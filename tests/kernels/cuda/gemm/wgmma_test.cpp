#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "tests/kernels/cuda/convolution_cases.h"
#include "tests/kernels/cuda/kernel_families.h"
#include "tests/kernels/values.h"
#include "tests/support/golden.h"

// wgmma forward products against the plain kernels; their gradients are in mma_gradient_test.cpp.

namespace nibblenet {
namespace {

using testing::Family;
using testing::fp16_on;
using testing::integers;
using testing::on;
using testing::relative_error;
using testing::same_bits;
using testing::uniform;
using testing::Values;

using Case = testing::ConvolutionCase;

/// Less than a block, several blocks, tails of 64 channels and of 128 pixels, blocks of 64, 96 and
/// 128 columns, strides, padding that windows lie in, split-K.
const std::vector<Case> cases = {
    {{1, 4, 5, 8}, {8, 8, 3, 3}, {3, 1, 1}},
    {{2, 9, 11, 72}, {64, 72, 3, 3}, {3, 1, 1}},
    {{1, 13, 13, 64}, {192, 64, 5, 5}, {5, 1, 2}},
    {{3, 12, 11, 40}, {136, 40, 3, 3}, {3, 2, 1}},
    {{2, 6, 7, 24}, {16, 24, 2, 2}, {2, 1, 0}},
    {{1, 3, 3, 16}, {200, 16, 7, 7}, {7, 1, 3}},
    {{130, 64}, {136, 64}},
    {{5, 1000}, {96, 1000}},
    {{300, 8}, {8, 8}},
};

/// Weights in superblocks: the tails of a tile's 64 rows and columns, blocks of 64, 96 and 128
/// rows, some of which begin inside of a tile, several taps and slices, one k-tile, split-K.
const std::vector<Case> superblock_cases = {
    {{1, 5, 4, 64}, {72, 64, 3, 3}, {3, 1, 1}},
    {{2, 5, 4, 128}, {200, 128, 1, 1}, {1, 1, 0}},
    {{1, 6, 5, 192}, {288, 192, 3, 3}, {3, 2, 1}},
    {{1, 13, 11, 64}, {192, 64, 5, 5}, {5, 1, 2}},
    {{130, 1040}, {288, 1040}},
    {{5, 72}, {96, 72}},
    {{300, 8}, {64, 8}},
};

std::string name_of(const Case& c) { return to_string(c.x) + " by " + to_string(c.w); }

class WgmmaProduct : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Device().has_wgmma()) GTEST_SKIP() << "no wgmma on this GPU";
  }
  /// In fp16 values, as kernels of the family give them.
  Values product(Family family, const Case& c, const Values& x, Weight& w, const Values& bias,
                 Epilogue epilogue = Epilogue::none) {
    use(cuda_, family);
    return fp16_product(cuda_, c, x, w, bias, epilogue);
  }

  CudaBackend cuda_;
};

class WgmmaUnpacked : public WgmmaProduct {};

TEST_F(WgmmaProduct, IsExactForIntegers) {
  for (const Case& c : cases)
    for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu}) {
      SCOPED_TRACE(name_of(c));
      const Values x = integers(c.x, 1, 2), bias = integers({c.w[0]}, 3, 2);
      const Values weights = integers(c.w, 2, 1);
      for (const bool trains : {false, true}) {
        const auto w =
            trains ? cuda_.make_trained_weight(weights.view()) : cuda_.make_weight(weights.view(), Precision::float16);
        EXPECT_EQ(product(Family::wgmma, c, x, *w, bias, epilogue), product(Family::plain, c, x, *w, bias, epilogue));
      }
    }
}

TEST_F(WgmmaProduct, SumsInFloat32) {
  for (const Case& c : {cases[1], cases[2], cases[7]}) {
    SCOPED_TRACE(name_of(c));
    const Values x = uniform(c.x, 1), weights = uniform(c.w, 2), bias = uniform({c.w[0]}, 3);
    const auto w = cuda_.make_weight(weights.view(), Precision::float16);
    const Values actual = product(Family::wgmma, c, x, *w, bias);
    const Values expected = product(Family::plain, c, x, *w, bias);
    EXPECT_LE(relative_error(actual.view(), expected.view()), 3e-4);  // a few results round to another fp16 value
  }
}

TEST_F(WgmmaProduct, EveryWayToStoreWeights) {
  for (const Case& c : {cases[1], Case{{40, 128}, {64, 128}}})
    for (const char* scheme : {"linear:4:tensor", "linear:2:channel", "linear:8:block:64:zero-point",
                               "linear:4:channel:zero-point", "linear:4:tile:64x64", "dynamic-tree:4:block:64",
                               "kmeans:3", "fp8-e4m3:8:channel", "stable-embedding:5", "nf4:4:block:64"}) {
      SCOPED_TRACE(name_of(c) + ", " + scheme);
      const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 3);
      const auto w = cuda_.make_weight(quantize(uniform(c.w, 2).view(), parse_scheme(scheme), "w"));
      EXPECT_LE(
          relative_error(product(Family::wgmma, c, x, *w, bias).view(), product(Family::plain, c, x, *w, bias).view()),
          1e-3);  // scales are fp16 values in one, floats in the other
    }
}

TEST_F(WgmmaUnpacked, IsExactForIntegersOfEveryWidth) {
  // A scale of 2^(n-1) - 1 makes linear's steps 1: weights are integers, and so is every partial
  // sum.
  for (const Case& c : superblock_cases)
    for (int bits = 2; bits <= 8; ++bits) {
      SCOPED_TRACE(fmt::format("{}, {} bits", name_of(c), bits));
      const int64_t largest = (int64_t{1} << (bits - 1)) - 1;
      Values weights = integers(c.w, 2, largest);
      weights.data[0] = static_cast<float>(largest);
      const PackedTensor packed = quantize(weights.view(), parse_scheme(fmt::format("linear:{}:tensor", bits)), "w");
      WeightCuda w(cuda_, packed, cuda_.stream(), WeightLayout::superblocks);
      const Values x = integers(c.x, 1, 1), bias = integers({c.w[0]}, 3, 2);
      EXPECT_EQ(product(Family::wgmma, c, x, w, bias), product(Family::plain, c, x, w, bias));
    }
}

TEST_F(WgmmaUnpacked, OtherCodesOfEveryWidth) {
  for (const Case& c : superblock_cases)
    for (int bits = 2; bits <= 8; ++bits) {
      SCOPED_TRACE(fmt::format("{}, {} bits", name_of(c), bits));
      const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 3);
      const PackedTensor packed =
          quantize(uniform(c.w, 2).view(), parse_scheme(fmt::format("kmeans:{}:channel", bits)), "w");
      WeightCuda w(cuda_, packed, cuda_.stream(), WeightLayout::superblocks);
      EXPECT_LE(
          relative_error(product(Family::wgmma, c, x, w, bias).view(), product(Family::plain, c, x, w, bias).view()),
          1e-3);  // values are fp16 in one, floats in the other
    }
}

TEST_F(WgmmaProduct, GivesTheSameBitsAgain) {
  const Case c = cases[7];
  const Values x = uniform(c.x, 1), weights = uniform(c.w, 2), bias = uniform({c.w[0]}, 3);
  const auto w = cuda_.make_weight(weights.view(), Precision::float16);
  EXPECT_TRUE(same_bits(product(Family::wgmma, c, x, *w, bias), product(Family::wgmma, c, x, *w, bias)));
}

TEST_F(WgmmaProduct, TakesOverWherePlainKernelsWouldBeSlow) {
  // Scales that change along channels and taps do not fit superblocks of filters: one kernel writes
  // rows of fp16 values, one or two more multiply.
  cuda_.choose_kernels(KernelChoice{}.without(Product::few_pixels));
  const Case c{{1, 6, 6, 64}, {64, 64, 3, 3}, {3, 1, 1}};
  const Values x = uniform(c.x, 1), bias = uniform({64}, 3);
  const auto w = cuda_.make_weight(quantize(uniform(c.w, 2).view(), parse_scheme("linear:4:block:64"), "w"));
  const Buffer<f16> input = fp16_on(cuda_, x);
  const Tensor<float> offset = on(cuda_, bias);
  Buffer<f16> y(cuda_, 36 * 64, MemoryCategory::data);
  const int64_t before = cuda_.stream().launches();
  cuda_.conv2d_forward(TensorView<f16>(y.data(), c.result_shape()), TensorView<const f16>(input.data(), c.x), *w,
                       offset.view(), c.window, Epilogue::none);
  EXPECT_GE(cuda_.stream().launches() - before, 2);
}

}  // namespace
}  // namespace nibblenet
