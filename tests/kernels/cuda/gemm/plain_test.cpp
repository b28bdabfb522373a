#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"
#include "tests/support/test_backend.h"

// Convolutions and linear layers of the CUDA backend against the CPU's: every scheme, both
// precisions, awkward shapes.

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::dequantized;
using testing::fp16_on;
using testing::identifier;
using testing::integers;
using testing::linear;
using testing::make_test_backend;
using testing::on;
using testing::output_of;
using testing::quantized;
using testing::relative_error;
using testing::same_bits;
using testing::schemes_of;
using testing::uniform;
using testing::Values;

/// Float32 sums in another order.
constexpr double float32_tolerance = 1e-5;
/// Activations and weights rounded to 11 bits: 2^-11 at most each, and 2^-12 / sqrt(3) in the mean.
constexpr double float16_tolerance = 2e-3;

constexpr std::array epilogues = {Epilogue::none, Epilogue::relu};

struct Case {
  Shape x;
  Shape w;
  Window window;
};

Shape output_shape(const Case& c) { return {c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]}; }

Values conv2d_fp16(Backend& backend, const Case& c, const Values& x, Weight& w, const Values& bias, Epilogue epilogue) {
  Buffer<f16> input = fp16_on(backend, x);
  const Tensor<float> offset = on(backend, bias);
  return output_of(backend, output_shape(c), [&](TensorView<float> y) {
    backend.conv2d_forward(y, TensorView<f16>(input.data(), x.shape), w, offset.view(), c.window, epilogue);
  });
}

/// Around the tile size of 64 x 64 x 32, primes, and the network's kinds of layers.
const std::vector<Case>& convolutions() {
  static const std::vector<Case> cases = {
      {{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 0}},  {{2, 13, 11, 3}, {7, 3, 11, 11}, {11, 4, 2}},
      {{1, 9, 7, 8}, {65, 8, 3, 3}, {3, 1, 1}}, {{3, 5, 5, 16}, {63, 16, 5, 5}, {5, 1, 2}},
      {{1, 6, 5, 5}, {17, 5, 3, 3}, {3, 2, 1}}, {{1, 8, 8, 24}, {64, 24, 3, 3}, {3, 1, 1}},
      {{0, 8, 8, 3}, {5, 3, 3, 3}, {3, 1, 1}},
  };
  return cases;
}

class CudaProduct : public ::testing::TestWithParam<MethodTraits> {
 protected:
  CpuBackend cpu_{2};
  std::unique_ptr<Backend> device_ = make_test_backend();
  Backend& cuda_ = *device_;
};

TEST_P(CudaProduct, ConvolutionsOfEveryScheme) {
  const std::vector<Case> cases = {{{1, 5, 7, 3}, {5, 3, 3, 3}, {3, 2, 1}}, {{1, 4, 4, 16}, {9, 16, 3, 3}, {3, 1, 1}}};
  for (const Case& c : cases) {
    const Values x = uniform(c.x, 1);
    const Values bias = uniform({c.w[0]}, 2);
    for (const Scheme& scheme : schemes_of(GetParam())) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(c.w));
      const PackedTensor packed = quantized(c.w, scheme, 3);
      const Values expected = conv2d(cpu_, x, *cpu_.make_weight(packed), bias, c.window, Epilogue::relu);
      const auto weight = cuda_.make_weight(packed);
      EXPECT_LE(relative_error(conv2d(cuda_, x, *weight, bias, c.window, Epilogue::relu).view(), expected.view()),
                float32_tolerance);
      EXPECT_LE(relative_error(conv2d_fp16(cuda_, c, x, *weight, bias, Epilogue::relu).view(), expected.view()),
                float16_tolerance);
    }
  }
}

TEST_P(CudaProduct, DecodesTheSameBits) {
  // With the identity as input, each row of the result is a column of weights, and nothing is
  // rounded.
  const Shape shape = {67, 45};
  Values identity({shape[1], shape[1]});
  for (int64_t i = 0; i < shape[1]; ++i) identity.data[static_cast<size_t>(i * (shape[1] + 1))] = 1.0F;
  const Values bias(Shape{shape[0]});
  for (const Scheme& scheme : schemes_of(GetParam())) {
    const PackedTensor packed = quantized(shape, scheme, 3);
    const Values weights = dequantized(packed);
    const Values columns = linear(cuda_, identity, *cuda_.make_weight(packed), bias);
    int64_t wrong = 0;
    for (int64_t k = 0; k < shape[0]; ++k)
      for (int64_t c = 0; c < shape[1]; ++c)
        wrong +=
            columns.data[static_cast<size_t>(c * shape[0] + k)] != weights.data[static_cast<size_t>(k * shape[1] + c)];
    EXPECT_EQ(wrong, 0) << to_string(scheme);
  }
}

TEST_P(CudaProduct, ResidentBytesAreTheMeteredOnes) {
  const MemoryMeter& meter = cuda_.meter();
  for (const Scheme& scheme : schemes_of(GetParam())) {
    for (const Shape& shape : {Shape{3, 17}, Shape{5, 3, 3, 3}}) {
      SCOPED_TRACE(to_string(scheme) + " of " + to_string(shape));
      ASSERT_EQ(meter.live_total(), 0U);
      PackedTensor packed = quantized(shape, scheme, 3);
      if (!scheme.zero_point) {  // a trained codebook travels with the tensor
        packed.codebook.resize(size_t{1} << scheme.bits);
        std::iota(packed.codebook.begin(), packed.codebook.end(), -3.0F);
      }
      const auto weight = cuda_.make_weight(packed);
      EXPECT_EQ(static_cast<int64_t>(meter.live_total()), weight->resident().total());
      EXPECT_EQ(weight->resident().total(), resident_size(packed).total());
    }
  }
}

TEST_P(CudaProduct, AStoredCodebookIsDataOfItsTensor) {
  for (int bits = GetParam().min_bits; bits <= GetParam().max_bits; ++bits) {
    PackedTensor packed = quantized({19, 33}, default_scheme(GetParam().method, bits), 3);
    packed.codebook.resize(size_t{1} << bits);
    for (size_t i = 0; i < packed.codebook.size(); ++i)
      packed.codebook[i] = static_cast<float>(i * i) / static_cast<float>(packed.codebook.size()) - 1.5F;
    const Values x = uniform({3, 33}, 1);
    const Values bias = uniform({19}, 2);
    EXPECT_LE(relative_error(linear(cuda_, x, *cuda_.make_weight(packed), bias).view(),
                             linear(cpu_, x, *cpu_.make_weight(packed), bias).view()),
              float32_tolerance)
        << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, CudaProduct, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& instance) { return identifier(instance.param.name); });

class CudaConvolution : public ::testing::Test {
 protected:
  CpuBackend cpu_{2};
  std::unique_ptr<Backend> device_ = make_test_backend();
  Backend& cuda_ = *device_;
};

TEST_F(CudaConvolution, AwkwardShapesInBothPrecisions) {
  for (const Case& c : convolutions()) {
    SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
    const Values x = uniform(c.x, 1), w = uniform(c.w, 2), bias = uniform({c.w[0]}, 3);
    for (const Epilogue epilogue : epilogues) {
      const Values expected = conv2d(cpu_, x, *cpu_.make_weight(w.view()), bias, c.window, epilogue);
      EXPECT_LE(relative_error(conv2d(cuda_, x, *cuda_.make_weight(w.view()), bias, c.window, epilogue).view(),
                               expected.view()),
                float32_tolerance);
      const auto fp16 = cuda_.make_weight(w.view(), Precision::float16);
      EXPECT_EQ(fp16->resident().total(), 2 * c.w.elements());
      EXPECT_LE(relative_error(conv2d_fp16(cuda_, c, x, *fp16, bias, epilogue).view(), expected.view()),
                float16_tolerance);
    }
  }
}

TEST_F(CudaConvolution, ExactForIntegers) {
  // Small integers are exact in fp16 and in sums of any order: nothing but a wrong index or a race
  // can differ.
  for (const Case& c : convolutions()) {
    SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
    const Values x = integers(c.x, 1), w = integers(c.w, 2), bias = integers({c.w[0]}, 3);
    const Values expected = conv2d(cpu_, x, *cpu_.make_weight(w.view()), bias, c.window);
    const auto fp16 = cuda_.make_weight(w.view(), Precision::float16);
    EXPECT_EQ(conv2d(cuda_, x, *cuda_.make_weight(w.view()), bias, c.window), expected);
    EXPECT_EQ(conv2d_fp16(cuda_, c, x, *fp16, bias, Epilogue::none), expected);
  }
}

TEST_F(CudaConvolution, TinyAndHugeWeightsKeepTheirPrecisionInFp16) {
  const Case c = {{1, 4, 4, 8}, {9, 8, 3, 3}, {3, 1, 1}};
  const Values x = uniform(c.x, 1), bias(Shape{9});
  for (const float unit : {1e-12F, 1e12F}) {
    Values w = uniform(c.w, 2);
    for (float& value : w.data) value *= unit;
    const PackedTensor packed = quantize(w.view(), parse_scheme("linear:8"), "w");
    for (const bool pack : {false, true}) {
      const Values expected =
          conv2d(cpu_, x, pack ? *cpu_.make_weight(packed) : *cpu_.make_weight(w.view()), bias, c.window);
      const auto weight = pack ? cuda_.make_weight(packed) : cuda_.make_weight(w.view(), Precision::float16);
      EXPECT_LE(relative_error(conv2d_fp16(cuda_, c, x, *weight, bias, Epilogue::none).view(), expected.view()),
                float16_tolerance)
          << unit;
    }
  }
}

TEST_F(CudaConvolution, RefusesWeightsOfTheOtherPrecision) {
  const Case c = {{1, 4, 4, 8}, {9, 8, 3, 3}, {3, 1, 1}};
  const Values x = uniform(c.x, 1), w = uniform(c.w, 2), bias(Shape{9});
  EXPECT_THROW(conv2d_fp16(cuda_, c, x, *cuda_.make_weight(w.view()), bias, Epilogue::none), Error);
  EXPECT_THROW(conv2d(cuda_, x, *cuda_.make_weight(w.view(), Precision::float16), bias, c.window), Error);
  EXPECT_THROW(cuda_.make_weight(w.view(), Precision::float16)->values(), Error);
}

TEST_F(CudaConvolution, GradientsOfManyPixelsAreExactInSplitK) {
  // Enough pixels for split-K in the gradients of weight and bias.
  const Case c = {{3, 31, 29, 5}, {9, 5, 3, 3}, {3, 1, 1}};
  const Values x = integers(c.x, 1), dy = integers(output_shape(c), 2);
  const auto gradients = [&](Backend& backend) {
    const Tensor<float> input = on(backend, x);
    const Tensor<float> gradient = on(backend, dy);
    Values dbias;
    const Values dw = output_of(backend, c.w, [&](TensorView<float> weight) {
      dbias = output_of(backend, {c.w[0]}, [&](TensorView<float> bias) {
        backend.training().conv2d_backward_weight(weight, bias, gradient.view(), input.view(), c.window);
      });
    });
    return std::pair(dw, dbias);
  };
  EXPECT_EQ(gradients(cuda_), gradients(cpu_));
}

TEST(CudaLinear, NeverHoldsTheMatrixInFloats) {
  const auto device = make_test_backend();
  Backend& backend = *device;
  const Shape shape = {256, 1024};
  const auto weight = backend.make_weight(quantized(shape, parse_scheme("linear:4:channel"), 3));
  const Values bias = uniform({shape[0]}, 4);
  for (const int64_t n : {1, 3, 70}) linear(backend, uniform({n, shape[1]}, 5), *weight, bias);
  // fp16 values would be half as large, so that is the bound.
  const size_t half_bytes = static_cast<size_t>(shape.elements()) * sizeof(f16);
  for (size_t i = 0; i < memory_category_count; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    EXPECT_LE(backend.meter().largest(category), half_bytes) << to_string(category);
  }
  EXPECT_EQ(backend.meter().largest(MemoryCategory::workspace), 0U);
}

TEST(CudaLinear, EveryBatchAroundTheTile) {
  CpuBackend cpu(2);
  const auto device = make_test_backend();
  Backend& cuda = *device;
  const Values bias = integers({70}, 4);
  for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
    const PackedTensor packed = quantized({70, 41}, parse_scheme(fmt::format("linear:{}:block:7", bits)), 3);
    for (const int64_t n : {1, 2, 63, 64, 65}) {
      const Values x = uniform({n, 41}, 5);
      EXPECT_LE(relative_error(linear(cuda, x, *cuda.make_weight(packed), bias).view(),
                               linear(cpu, x, *cpu.make_weight(packed), bias).view()),
                float32_tolerance)
          << bits << " bits, batch " << n;
    }
  }
}

}  // namespace
}  // namespace nibblenet
