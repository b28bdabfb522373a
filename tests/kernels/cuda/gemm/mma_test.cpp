#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "tests/kernels/cuda/convolution_cases.h"
#include "tests/kernels/cuda/kernel_families.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

// Convolutions and linear layers of many rows by superblocks on the tensor cores, against the CPU.

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::fp16_on;
using testing::fuses_pooling;
using testing::identifier;
using testing::integers;
using testing::linear;
using testing::on;
using testing::output_of;
using testing::quantized;
using testing::relative_error;
using testing::same_bits;
using testing::superblock_methods;
using testing::superblock_schemes;
using testing::uniform;
using testing::Values;

/// Activations and weights rounded to 11 bits.
constexpr double float16_tolerance = 2e-3;

using Case = testing::ConvolutionCase;
using testing::superblock_convolutions;

/// Around the 32 columns of a warp and the 128 of a block; odd rows, columns that are no whole
/// slice.
const std::vector<Case> matrices = {
    {{17, 64}, {64, 64}}, {{33, 8}, {1, 8}}, {{129, 136}, {65, 136}}, {{40, 56}, {257, 56}}, {{20, 1032}, {72, 1032}},
};

class MmaProduct : public ::testing::Test {
 protected:
  MmaProduct() { cuda_.choose_kernels(testing::mma_kernels); }

  /// A linear layer's or a convolution's output in `y_precision`, read back as floats.
  Values product(const Case& c, const Values& x, const PackedTensor& packed, const Values& bias,
                 Epilogue epilogue = Epilogue::none, Precision y_precision = Precision::float32) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    WeightCuda w(cuda_, packed, cuda_.stream(), WeightLayout::superblocks);
    return output_of(cuda_, c.result_shape(), [&](TensorView<float> y) {
      Buffer<f16> fp16(cuda_, static_cast<size_t>(y.elements()), MemoryCategory::data);
      const Activations rounded = TensorView<f16>(fp16.data(), y.shape());
      forward(c, y_precision == Precision::float32 ? Activations(y) : rounded,
              TensorView<const f16>(input.data(), x.shape), w, offset.view(), epilogue);
      if (y_precision == Precision::float16) cuda_.convert(y, rounded);
    });
  }

  Values expected(const Case& c, const Values& x, const PackedTensor& packed, const Values& bias,
                  Epilogue epilogue = Epilogue::none) {
    const auto w = cpu_.make_weight(packed);
    return c.x.rank() == 2 ? linear(cpu_, x, *w, bias, epilogue) : conv2d(cpu_, x, *w, bias, c.window, epilogue);
  }

  void forward(const Case& c, Activations y, ConstActivations x, WeightCuda& w, TensorView<const float> bias,
               Epilogue epilogue) {
    const int64_t launches = cuda_.stream().launches();
    if (c.x.rank() == 4)
      cuda_.conv2d_forward(y, x, w, bias, c.window, epilogue);
    else
      cuda_.linear_forward(y, x, w, bias, epilogue);
    EXPECT_EQ(cuda_.stream().launches(), launches + 1);
  }

  CpuBackend cpu_{2};
  CudaBackend cuda_;
};

class MmaProductOf : public MmaProduct, public ::testing::WithParamInterface<MethodTraits> {};

TEST_P(MmaProductOf, EverySchemeOfMatrices) {
  const Case c{{19, 192}, {128, 192}};
  const Values x = uniform(c.x, 1), bias = uniform({128}, 2);
  for (const Scheme& scheme : superblock_schemes(GetParam())) {
    const PackedTensor packed = quantized(c.w, scheme, 3);
    EXPECT_LE(relative_error(product(c, x, packed, bias, Epilogue::relu).view(),
                             expected(c, x, packed, bias, Epilogue::relu).view()),
              float16_tolerance)
        << to_string(scheme);
  }
}

TEST_P(MmaProductOf, EveryWidthOfFilters) {
  const Case c = superblock_convolutions[0];
  const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
  for (int bits = GetParam().min_bits; bits <= GetParam().max_bits; ++bits)
    for (const std::string rest : {"tensor", "channel", "channel:zero-point"}) {
      if (rest == "channel:zero-point" && GetParam().method != Method::linear) continue;
      const PackedTensor packed = quantized(c.w, parse_scheme(fmt::format("{}:{}:{}", GetParam().name, bits, rest)), 3);
      EXPECT_LE(relative_error(product(c, x, packed, bias).view(), expected(c, x, packed, bias).view()),
                float16_tolerance)
          << bits << " bits, " << rest;
    }
}

INSTANTIATE_TEST_SUITE_P(Methods, MmaProductOf, ::testing::ValuesIn(superblock_methods()),
                         [](const auto& instance) { return identifier(instance.param.name); });

TEST_F(MmaProduct, IsExactForIntegersOfAwkwardShapes) {
  // A scale of 2^(n-1) - 1 makes linear's steps 1: weights are integers, and so is every partial
  // sum.
  int bits = 2;
  for (const auto* cases : {&superblock_convolutions, &matrices})
    for (const Case& c : *cases) {
      SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
      const int64_t largest = (int64_t{1} << (bits - 1)) - 1;
      Values weights = integers(c.w, 3, largest);
      weights.data[0] = static_cast<float>(largest);
      const PackedTensor packed = quantize(weights.view(), parse_scheme(fmt::format("linear:{}:tensor", bits)), "w");
      const Values x = integers(c.x, 5), bias = integers({c.w[0]}, 4);
      EXPECT_EQ(product(c, x, packed, bias), expected(c, x, packed, bias)) << bits << " bits";
      bits = bits == 8 ? 2 : bits + 1;
    }
}

TEST_F(MmaProduct, Fp16WeightsAreSuperblocksToo) {
  // Cases of whole superblocks. Integers are exact in every kernel, so results are equal.
  const std::vector<Case> cases = {{{3, 4, 5, 64}, {64, 64, 3, 3}, {3, 1, 1}},
                                   {{1, 9, 7, 128}, {192, 128, 3, 3}, {3, 2, 1}},
                                   {{17, 128}, {64, 128}},
                                   {{7, 192}, {128, 192}},
                                   {{16, 64}, {192, 64}},
                                   {{5, 60}, {64, 60}},
                                   {{5, 64}, {60, 64}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
    const Values weights = integers(c.w, 3), x = integers(c.x, 5), bias = integers({c.w[0]}, 4);
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    const auto w = cuda_.make_weight(weights.view(), Precision::float16);
    auto& resident = static_cast<WeightCuda&>(*w);
    const bool whole = c.w[0] % 64 == 0 && c.w[1] % 64 == 0;
    EXPECT_EQ(resident.layout(), whole ? WeightLayout::superblocks : WeightLayout::channels);
    EXPECT_EQ(resident.resident().total(), 2 * c.w.elements());
    const auto float_weight = cpu_.make_weight(weights.view());
    const Values expected =
        c.x.rank() == 2 ? linear(cpu_, x, *float_weight, bias) : conv2d(cpu_, x, *float_weight, bias, c.window);
    for (const bool plain : {false, true}) {
      cuda_.choose_kernels(plain ? testing::plain_kernels : testing::mma_kernels);
      EXPECT_EQ(output_of(cuda_, c.result_shape(),
                          [&](TensorView<float> y) {
                            forward(c, y, TensorView<const f16>(input.data(), x.shape), resident, offset.view(),
                                    Epilogue::none);
                          }),
                expected)
          << (plain ? "plain" : "fast");
    }
    cuda_.choose_kernels(testing::mma_kernels);
  }
}

TEST_F(MmaProduct, Fp16ResultsAreTheRoundedOnes) {
  for (const auto* cases : {&superblock_convolutions, &matrices})
    for (const Case& c : *cases) {
      SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
      const PackedTensor packed = quantized(c.w, parse_scheme("linear:3:channel"), 3);
      const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
      Values rounded = product(c, x, packed, bias, Epilogue::relu);
      for (float& value : rounded.data) value = f16_to_f32(f32_to_f16(value));
      EXPECT_TRUE(same_bits(product(c, x, packed, bias, Epilogue::relu, Precision::float16), rounded));
    }
}

TEST_F(MmaProduct, FusedPoolingHasTheBitsOfSeparatePooling) {
  struct Pooled {
    Case c;
    Window pool;
  };
  // Several images in a block, one image, bands that share rows, rows and columns that no window
  // reaches, split-K.
  const std::vector<Pooled> cases = {{{{3, 5, 5, 64}, {70, 64, 3, 3}, {3, 1, 1}}, {3, 2, 0}},
                                     {{{2, 13, 13, 64}, {64, 64, 3, 3}, {3, 1, 1}}, {3, 2, 0}},
                                     {{{1, 19, 17, 64}, {65, 64, 5, 5}, {5, 1, 2}}, {3, 2, 0}},
                                     {{{1, 6, 6, 192}, {8, 192, 3, 3}, {3, 1, 1}}, {2, 3, 0}}};
  for (const auto& [c, pool] : cases) {
    SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
    WeightCuda w(cuda_, quantized(c.w, parse_scheme("linear:4:channel"), 3), cuda_.stream(), WeightLayout::superblocks);
    const Buffer<f16> fp16 = fp16_on(cuda_, uniform(c.x, 1));
    const TensorView<const f16> x(fp16.data(), c.x);
    const Tensor<float> bias = on(cuda_, uniform({c.w[0]}, 2));
    const Shape convolved = c.result_shape();
    const Shape pooled = {convolved[0], pool.output(convolved[1]), pool.output(convolved[2]), convolved[3]};
    Buffer<f16> between(cuda_, static_cast<size_t>(convolved.elements()), MemoryCategory::data);
    Buffer<f16> result(cuda_, static_cast<size_t>(pooled.elements()), MemoryCategory::data);
    const TensorView<f16> y(result.data(), pooled);
    const Values expected = output_of(cuda_, pooled, [&](TensorView<float> floats) {
      cuda_.conv2d_forward(TensorView<f16>(between.data(), convolved), x, w, bias.view(), c.window, Epilogue::relu);
      cuda_.max_pool2d_forward(floats, {}, TensorView<const f16>(between.data(), convolved), pool);
    });
    const Values actual = output_of(cuda_, pooled, [&](TensorView<float> floats) {
      ASSERT_TRUE(fuses_pooling(cuda_, y, x, w, c.window, pool));
      cuda_.conv2d_max_pool2d_forward(y, x, w, bias.view(), c.window, Epilogue::relu, pool);
      cuda_.convert(floats, y);
    });
    EXPECT_EQ(actual, expected);
    EXPECT_FALSE(fuses_pooling(cuda_, y, x, w, c.window, {3, 2, 1}));
    EXPECT_THROW(cuda_.conv2d_max_pool2d_forward(y, x, w, bias.view(), c.window, Epilogue::relu, {3, 2, 1}), Error);
  }
}

TEST_F(MmaProduct, PoolingKeepsNaN) {
  const Case c{{1, 3, 3, 64}, {64, 64, 1, 1}, {1, 1, 0}};
  Values input = uniform(c.x, 1);
  input.data[5] = std::numeric_limits<float>::quiet_NaN();
  WeightCuda w(cuda_, quantized(c.w, parse_scheme("linear:4:channel"), 3), cuda_.stream(), WeightLayout::superblocks);
  const Buffer<f16> fp16 = fp16_on(cuda_, input);
  const Tensor<float> bias = on(cuda_, Values({64}));
  Buffer<f16> result(cuda_, 64, MemoryCategory::data);
  const TensorView<f16> y(result.data(), {1, 1, 1, 64});
  cuda_.conv2d_max_pool2d_forward(y, TensorView<const f16>(fp16.data(), c.x), w, bias.view(), c.window, Epilogue::relu,
                                  {3, 2, 0});
  const Values pooled = output_of(cuda_, y.shape(), [&](TensorView<float> floats) { cuda_.convert(floats, y); });
  for (const float value : pooled.data) EXPECT_TRUE(std::isnan(value));
}

TEST_F(MmaProduct, TinyAndHugeWeightsWithTheirOwnScales) {
  const Case c{{20, 128}, {64, 128}};
  const Values x = uniform(c.x, 1), bias(Shape{64});
  for (const float unit : {1e-12F, 1e12F})
    for (const char* scheme : {"linear:8:block:64", "nf4:4:block:64", "linear:5:block:64:zero-point"}) {
      Values w = uniform(c.w, 2);
      for (size_t i = 0; i < w.data.size(); ++i) w.data[i] *= i / 64 % 2 == 0 ? unit : unit / 1024;
      const PackedTensor packed = quantize(w.view(), parse_scheme(scheme), "w");
      EXPECT_LE(relative_error(product(c, x, packed, bias).view(), expected(c, x, packed, bias).view()),
                float16_tolerance)
          << scheme << ", " << unit;
    }
}

TEST_F(MmaProduct, ThePlainKernelsReadSuperblocksOfFiltersToo) {
  for (const Case& c : {superblock_convolutions[0], superblock_convolutions[2]})
    for (int bits = 2; bits <= 8; ++bits) {
      const PackedTensor packed = quantized(c.w, parse_scheme(fmt::format("linear:{}:channel", bits)), 3);
      const Tensor<float> x = on(cuda_, uniform(c.x, 1)), bias = on(cuda_, uniform({c.w[0]}, 2));
      const auto result = [&](WeightLayout layout) {
        WeightCuda w(cuda_, packed, cuda_.stream(), layout);
        return output_of(cuda_, c.result_shape(), [&](TensorView<float> y) {
          cuda_.conv2d_forward(y, x.view(), w, bias.view(), c.window, Epilogue::none);
        });
      };
      EXPECT_TRUE(same_bits(result(WeightLayout::superblocks), result(WeightLayout::channels))) << bits << " bits";
    }
}

TEST_F(MmaProduct, PlainKernelsCanBeAskedFor) {
  for (const Case& c : {superblock_convolutions[0], Case{{3, 64}, {64, 64}}, Case{{20, 64}, {64, 64}}}) {
    const PackedTensor packed = quantized(c.w, parse_scheme("linear:4:channel"), 3);
    const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
    cuda_.choose_kernels(testing::mma_kernels);
    const Values fast = product(c, x, packed, bias);
    cuda_.choose_kernels(testing::plain_kernels);
    const Values plain = product(c, x, packed, bias);
    EXPECT_LE(relative_error(fast.view(), plain.view()), 1e-5);  // the same products in another order
    EXPECT_FALSE(same_bits(fast, plain)) << to_string(c.w);
  }
}

TEST(Kernels, AreChosenByTheEnvironment) {
  for (const char* unknown : {"slow", "fast,-plain", "fast,-slow", "fast,few_rows", "-few_rows"}) {
    ASSERT_EQ(setenv("NIBBLENET_KERNELS", unknown, 1), 0);
    EXPECT_THROW(CudaBackend(), UsageError) << unknown;
  }
  for (const char* known : {"plain", "portable", "fast", "", "fast,-few_pixels,-wgmma"}) {
    ASSERT_EQ(setenv("NIBBLENET_KERNELS", known, 1), 0);
    EXPECT_NO_THROW(CudaBackend()) << known;
  }
  unsetenv("NIBBLENET_KERNELS");
}

}  // namespace
}  // namespace nibblenet
