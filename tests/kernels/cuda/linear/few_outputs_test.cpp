#include <gtest/gtest.h>

#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/linear/launchers.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

// Linear layers of few outputs against the CPU.

namespace nibblenet {
namespace {

using testing::fp16_on;
using testing::identifier;
using testing::integers;
using testing::linear;
using testing::on;
using testing::output_of;
using testing::quantized;
using testing::relative_error;
using testing::same_bits;
using testing::schemes_of;
using testing::uniform;
using testing::Values;

/// Activations and weights rounded to 11 bits.
constexpr double float16_tolerance = 2e-3;

class FewOutputs : public ::testing::Test {
 protected:
  Values product(const Values& x, const WeightCuda& w, const Values& bias, Epilogue epilogue = Epilogue::none,
                 Precision y_precision = Precision::float32) {
    const Shape shape{x.shape[0], w.shape()[0]};
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    return output_of(cuda_, shape, [&](TensorView<float> y) {
      Buffer<f16> fp16(cuda_, static_cast<size_t>(y.elements()), MemoryCategory::data);
      const Activations rounded = TensorView<f16>(fp16.data(), shape);
      const Activations to = y_precision == Precision::float32 ? Activations(y) : rounded;
      cuda::few_outputs_forward(
          forward_product(to, TensorView<const f16>(input.data(), x.shape), w, offset.view(), {}, epilogue), scratch_,
          cuda_.stream());
      if (y_precision == Precision::float16) cuda_.convert(y, rounded);
    });
  }
  /// Through the backend: whichever kernel it takes.
  Values forward(const Values& x, Weight& w, const Values& bias) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    return output_of(cuda_, {x.shape[0], w.shape()[0]}, [&](TensorView<float> y) {
      cuda_.linear_forward(y, TensorView<const f16>(input.data(), x.shape), w, offset.view(), Epilogue::none);
    });
  }

  /// A workspace that refuses: the kernel needs none.
  class NoScratch final : public Workspace {
    float* floats(size_t) override { return nullptr; }
    unsigned* counters(size_t) override { return nullptr; }
  };

  CpuBackend cpu_{2};
  CudaBackend cuda_;
  NoScratch scratch_;
};

class FewOutputsOf : public FewOutputs, public ::testing::WithParamInterface<MethodTraits> {};

TEST_P(FewOutputsOf, EveryScheme) {
  const Values x = uniform({9, 72}, 1), bias = uniform({10}, 2);
  for (const Scheme& scheme : schemes_of(GetParam())) {
    const PackedTensor packed = quantized({10, 72}, scheme, 3);
    const WeightCuda w(cuda_, packed, cuda_.stream());
    EXPECT_LE(relative_error(product(x, w, bias, Epilogue::relu).view(),
                             linear(cpu_, x, *cpu_.make_weight(packed), bias, Epilogue::relu).view()),
              float16_tolerance)
        << to_string(scheme);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, FewOutputsOf, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& instance) { return identifier(instance.param.name); });

TEST_F(FewOutputs, IsExactForIntegersOfAwkwardShapes) {
  // Around the eight rows of a block, and the 1,024 columns that its threads take at a time.
  for (const int64_t rows : {0, 1, 7, 8, 9, 33})
    for (const int64_t columns : {8, 264, 1024, 1032, 2600})
      for (const int64_t outputs : {1, 10, 32}) {
        SCOPED_TRACE(::testing::Message() << rows << " x " << columns << " by " << outputs);
        const Values x = integers({rows, columns}, 1), weights = integers({outputs, columns}, 2),
                     bias = integers({outputs}, 3);
        const auto w = cuda_.make_weight(weights.view(), Precision::float16);
        const Values expected = linear(cpu_, x, *cpu_.make_weight(weights.view()), bias);
        EXPECT_EQ(product(x, static_cast<WeightCuda&>(*w), bias), expected);
        EXPECT_EQ(forward(x, *w, bias), expected);
      }
}

TEST_F(FewOutputs, Fp16ResultsAreTheRoundedOnes) {
  const Values x = uniform({9, 1024}, 1), bias = uniform({10}, 2);
  const WeightCuda w(cuda_, quantized({10, 1024}, parse_scheme("linear:4:channel"), 3), cuda_.stream());
  Values rounded = product(x, w, bias, Epilogue::relu);
  for (float& value : rounded.data) value = f16_to_f32(f32_to_f16(value));
  EXPECT_TRUE(same_bits(product(x, w, bias, Epilogue::relu, Precision::float16), rounded));
}

TEST_F(FewOutputs, OthersGoToThePlainKernel) {
  const std::vector<Shape> shapes = {{33, 8}, {10, 12}, {3, 1}};
  for (const Shape& shape : shapes) {
    const Values x = integers({3, shape[1]}, 1), weights = integers(shape, 2), bias = integers({shape[0]}, 3);
    const auto w = cuda_.make_weight(weights.view(), Precision::float16);
    EXPECT_EQ(forward(x, *w, bias), linear(cpu_, x, *cpu_.make_weight(weights.view()), bias)) << to_string(shape);
  }
}

}  // namespace
}  // namespace nibblenet
