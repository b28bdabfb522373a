#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::dequantized;
using testing::identifier;
using testing::integers;
using testing::linear;
using testing::quantized;
using testing::relative_error;
using testing::same_bits;
using testing::schemes_of;
using testing::uniform;
using testing::Values;

constexpr std::array epilogues = {Epilogue::none, Epilogue::relu};

/// Both sides of the largest batch that takes the dot products (8), and one that suits the blocked
/// product.
constexpr std::array<int64_t, 5> batches = {1, 2, 8, 9, 40};

/// How far two sums of the same C products may lie apart, relative to the norm of the results.
/// Addition j rounds a partial sum of random signs, of size sqrt(j) s, by a uniform error of RMS
/// 2^-24 sqrt(j) s / sqrt(3) at most; over C additions that is 2^-24 C s / sqrt(6) against a result
/// of sqrt(C) s. Two sums, each rounded once more with the bias: twice (sqrt(C / 6) + 1). Vector
/// lanes and blocks, which sum shorter chains, stay well below; 1e-6 is the promise.
double rounding(int64_t terms) { return std::min(1e-6, 2 * (std::sqrt(static_cast<double>(terms) / 6) + 1) * 0x1p-24); }

void expect_linear_like_float(Backend& backend, const PackedTensor& packed) {
  const int64_t k = packed.shape[0], c = packed.shape[1];
  const auto weight = backend.make_weight(packed);
  const auto plain = backend.make_weight(dequantized(packed).view());
  const Values bias = uniform({k}, 5);
  for (const int64_t n : batches) {
    for (const Epilogue epilogue : epilogues) {
      const Values x = uniform({n, c}, static_cast<uint64_t>(n));
      const Values expected = linear(backend, x, *plain, bias, epilogue);
      const Values actual = linear(backend, x, *weight, bias, epilogue);
      EXPECT_LE(relative_error(actual.view(), expected.view()), rounding(c))
          << to_string(packed.scheme) << " " << to_string(packed.shape) << ", batch " << n
          << (epilogue == Epilogue::relu ? ", relu" : "");
    }
  }
}

class PackedProduct : public ::testing::TestWithParam<MethodTraits> {
 protected:
  CpuBackend backend_{2};
};

TEST_P(PackedProduct, LinearEqualsTheFloatPathToRounding) {
  // One over a panel's 128 rows; one over four rows, and over a panel's 2048 columns.
  const std::vector<Shape> shapes = {{131, 133}, {37, 2100}};
  for (const Scheme& scheme : schemes_of(GetParam()))
    for (const Shape& shape : shapes) expect_linear_like_float(backend_, quantized(shape, scheme, 3));
}

TEST_P(PackedProduct, LinearOverSeveralPanelsEachWay) {
  for (int bits = GetParam().min_bits; bits <= GetParam().max_bits; ++bits)
    expect_linear_like_float(backend_, quantized({131, 2100}, default_scheme(GetParam().method, bits), 3));
}

TEST_P(PackedProduct, ConvolutionEqualsTheFloatPathBitForBit) {
  // Decoding is exact and both run the same primitive, so there is nothing to round.
  struct Case {
    Shape x;
    Shape w;
    Window window;
  };
  const std::vector<Case> cases = {{{2, 13, 11, 3}, {8, 3, 11, 11}, {11, 4, 2}},
                                   {{1, 6, 5, 5}, {17, 5, 3, 3}, {3, 1, 1}},
                                   {{9, 4, 4, 16}, {32, 16, 1, 1}, {1, 1, 0}}};
  for (const Case& c : cases) {
    const Values x = uniform(c.x, 1);
    const Values bias = uniform({c.w[0]}, 2);
    for (const Scheme& scheme : schemes_of(GetParam())) {
      const PackedTensor packed = quantized(c.w, scheme, 3);
      const auto weight = backend_.make_weight(packed);
      const auto plain = backend_.make_weight(dequantized(packed).view());
      for (const Epilogue epilogue : epilogues)
        EXPECT_TRUE(same_bits(conv2d(backend_, x, *weight, bias, c.window, epilogue),
                              conv2d(backend_, x, *plain, bias, c.window, epilogue)))
            << to_string(scheme) << " of " << to_string(c.w);
    }
  }
}

TEST_P(PackedProduct, ResidentBytesAreTheMeteredOnes) {
  using Category = MemoryCategory;
  const MemoryMeter& meter = backend_.meter();
  for (const Scheme& scheme : schemes_of(GetParam())) {
    for (const Shape& shape : {Shape{3, 17}, Shape{5, 3, 3, 3}}) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      ASSERT_EQ(meter.live_total(), 0U);
      PackedTensor packed = quantized(shape, scheme, 3);
      if (!scheme.zero_point) {  // a trained codebook travels with the tensor
        packed.codebook.resize(size_t{1} << scheme.bits);
        std::iota(packed.codebook.begin(), packed.codebook.end(), -3.0F);
      }
      const auto weight = backend_.make_weight(packed);
      const ResidentSize size = weight->resident();
      const auto live = [&](Category category) { return static_cast<int64_t>(meter.live(category)); };
      EXPECT_EQ(live(Category::codes) + live(Category::block_ids), size.codes + size.block_ids + size.padding);
      EXPECT_EQ(live(Category::scales), size.scales);
      EXPECT_EQ(live(Category::zero_points), size.zero_points);
      EXPECT_EQ(live(Category::codebooks), size.codebooks);
      EXPECT_EQ(size.biases + size.weights, 0);
      EXPECT_EQ(static_cast<int64_t>(meter.live_total()), size.total());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, PackedProduct, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& instance) { return identifier(instance.param.name); });

TEST(PackedLinear, IsExactForIntegers) {
  // A scale of 2^(n-1) - 1 makes linear's steps 1: the weights are integers, and so is every
  // partial sum.
  CpuBackend backend(2);
  for (int bits = 2; bits <= 8; ++bits) {
    const int64_t largest = (int64_t{1} << (bits - 1)) - 1;
    for (const Shape& shape : {Shape{1, 1}, Shape{5, 7}, Shape{131, 2100}}) {
      Values weights = integers(shape, 3, largest);
      weights.data[0] = static_cast<float>(largest);
      const auto weight =
          backend.make_weight(quantize(weights.view(), parse_scheme(fmt::format("linear:{}:tensor", bits)), "w"));
      const auto plain = backend.make_weight(weights.view());
      const Values bias = integers({shape[0]}, 4);
      for (const int64_t n : batches) {
        const Values x = integers({n, shape[1]}, 5);
        EXPECT_EQ(linear(backend, x, *weight, bias), linear(backend, x, *plain, bias))
            << bits << " bits, " << to_string(shape) << ", batch " << n;
      }
    }
  }
}

TEST(PackedLinear, NeverHoldsTheMatrixInFloats) {
  CpuBackend backend(2);
  const Shape shape = {1024, 4096};
  const auto weight = backend.make_weight(quantized(shape, parse_scheme("linear:4:channel"), 3));
  const Values bias = uniform({shape[0]}, 4);
  for (const int64_t n : batches) linear(backend, uniform({n, shape[1]}, 5), *weight, bias);

  const size_t float_bytes = static_cast<size_t>(shape.elements()) * sizeof(float);
  // A panel of 128 x 2048 floats for each thread.
  EXPECT_EQ(backend.meter().largest(MemoryCategory::workspace), size_t{2} * 128 * 2048 * sizeof(float));
  for (size_t i = 0; i < memory_category_count; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    EXPECT_LT(backend.meter().largest(category), float_bytes) << to_string(category);
  }
  EXPECT_LT(backend.meter().peak_total(), float_bytes);
}

TEST(PackedLinear, WorksBesideABackendOfMoreThreads) {
  // The number of OpenMP threads is the process's: a later backend must not make an earlier one
  // outgrow its workspace.
  CpuBackend one(1);
  const PackedTensor packed = quantized({1100, 40}, parse_scheme("linear:4:channel"), 3);
  const auto weight = one.make_weight(packed);
  const Values x = uniform({40, 40}, 5);
  const Values bias(Shape{1100});
  const Values expected = linear(one, x, *weight, bias);
  CpuBackend eight(8);
  EXPECT_TRUE(same_bits(linear(one, x, *weight, bias), expected));
  EXPECT_EQ(one.meter().largest(MemoryCategory::workspace), size_t{128} * 2048 * sizeof(float));
}

TEST(PackedWeight, HasNoFloatValues) {
  CpuBackend backend(2);
  for (const Shape& shape : {Shape{3, 17}, Shape{5, 3, 3, 3}}) {
    const auto weight = backend.make_weight(quantized(shape, parse_scheme("linear"), 3));
    EXPECT_TRUE(weight->packed());
    EXPECT_EQ(weight->shape(), shape);
    EXPECT_THROW(weight->values(), Error);
  }
}

}  // namespace
}  // namespace nibblenet
