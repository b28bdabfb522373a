#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/conv/few_channels_fit.h"
#include "kernels/cuda/gemm/product.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

// Convolutions of few channels on the tensor cores, against the CPU.

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::fp16_on;
using testing::fuses_pooling;
using testing::identifier;
using testing::integers;
using testing::on;
using testing::output_of;
using testing::quantized;
using testing::relative_error;
using testing::schemes_of;
using testing::uniform;
using testing::Values;

/// Activations, weights and results rounded to 11 bits.
constexpr double float16_tolerance = 2e-3;

struct Case {
  Shape x;
  Shape w;
  Window window;
};

/// Rows of whole 16 bytes and others, windows that begin at odd elements, runs of odd and even
/// length; filters around the 64 of a block; bands of rows, of parts of rows, of several tiles and
/// of one; many blocks and few.
const std::vector<Case> convolutions = {
    {{2, 13, 11, 3}, {7, 3, 11, 11}, {11, 4, 2}}, {{1, 35, 32, 3}, {64, 3, 11, 11}, {11, 4, 2}},
    {{1, 9, 300, 1}, {65, 1, 3, 3}, {3, 2, 1}},   {{3, 8, 8, 2}, {8, 2, 3, 3}, {3, 1, 1}},
    {{1, 6, 5, 5}, {17, 5, 3, 3}, {3, 2, 1}},     {{1, 12, 7, 4}, {130, 4, 5, 5}, {5, 3, 0}},
    {{130, 19, 16, 3}, {12, 3, 5, 5}, {5, 2, 2}}, {{43, 69, 16, 2}, {9, 2, 3, 3}, {3, 2, 1}},
    {{1, 40, 600, 1}, {16, 1, 2, 2}, {2, 2, 0}},  {{1, 1, 1, 2}, {1, 2, 1, 1}, {1, 1, 0}},
    {{0, 8, 8, 2}, {5, 2, 3, 3}, {3, 1, 1}},      {{300, 24, 21, 3}, {3, 3, 3, 3}, {3, 4, 2}},
    {{1, 4, 6, 24}, {9, 24, 3, 3}, {3, 1, 1}},
};
/// Cases of the plain kernel: windows that each begin at an odd element, filters of too many
/// pairs.
const std::vector<Case> others = {{{1, 5, 7, 3}, {5, 3, 3, 3}, {3, 1, 1}}, {{1, 6, 6, 24}, {4, 24, 5, 5}, {5, 1, 2}}};

class FewChannels : public ::testing::Test {
 protected:
  static Shape result_shape(const Case& c) {
    return {c.x[0], c.window.output(c.x[1]), c.window.output(c.x[2]), c.w[0]};
  }
  /// The output in fp16, read back as floats.
  Values product(const Case& c, const Values& x, Weight& w, const Values& bias, Epilogue epilogue = Epilogue::none) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    Buffer<f16> result = fp16_on(cuda_, Values(result_shape(c), 77.0F));
    const Activations y = TensorView<f16>(result.data(), result_shape(c));
    cuda_.conv2d_forward(y, TensorView<const f16>(input.data(), x.shape), w, offset.view(), c.window, epilogue);
    return output_of(cuda_, result_shape(c), [&](TensorView<float> floats) { cuda_.convert(floats, y); });
  }

  CpuBackend cpu_{2};
  CudaBackend cuda_;
};

class FewChannelsOf : public FewChannels, public ::testing::WithParamInterface<MethodTraits> {};

TEST_P(FewChannelsOf, EveryScheme) {
  const std::vector<Case> cases = {{{1, 9, 8, 3}, {5, 3, 3, 3}, {3, 2, 0}}, {{2, 5, 7, 2}, {9, 2, 3, 3}, {3, 1, 1}}};
  for (const Case& c : cases) {
    const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
    for (const Scheme& scheme : schemes_of(GetParam())) {
      const PackedTensor packed = quantized(c.w, scheme, 3);
      const auto w = cuda_.make_weight(packed);
      EXPECT_LE(relative_error(product(c, x, *w, bias, Epilogue::relu).view(),
                               conv2d(cpu_, x, *cpu_.make_weight(packed), bias, c.window, Epilogue::relu).view()),
                float16_tolerance)
          << to_string(scheme);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, FewChannelsOf, ::testing::ValuesIn(scalar_methods().begin(), scalar_methods().end()),
                         [](const auto& instance) { return identifier(instance.param.name); });

TEST_F(FewChannels, ReadsCodesThatDoNotFitBesideTheImage) {
  const Case c{{1, 30, 264, 4}, {65, 4, 11, 11}, {11, 1, 5}};
  const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
  for (const int bits : {8, 4}) {  // the latter fit
    const PackedTensor packed = quantized(c.w, parse_scheme(fmt::format("linear:{}:channel:zero-point", bits)), 3);
    ProductCase product = product_case(c.x, result_shape(c), c.window, traits_of(packed, WeightLayout::channels));
    OutputBands bands = few_channels::plan_of(product).value().bands;
    bands.code_stride = static_cast<int>(packed.code_stride());
    EXPECT_EQ(bands.shared_bytes() > block_shared_bytes, bits == 8);
    EXPECT_LE(relative_error(FewChannels::product(c, x, *cuda_.make_weight(packed), bias).view(),
                             conv2d(cpu_, x, *cpu_.make_weight(packed), bias, c.window).view()),
              float16_tolerance);
  }
}

TEST_F(FewChannels, IsExactForIntegersOfAwkwardShapes) {
  // Up to 1 times up to 3: results below 2,048 are exact in fp16, too.
  for (const auto* cases : {&convolutions, &others})
    for (const Case& c : *cases) {
      SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
      const Values x = integers(c.x, 1, 1), w = integers(c.w, 2), bias = integers({c.w[0]}, 3);
      for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu}) {
        const auto fp16 = cuda_.make_weight(w.view(), Precision::float16);
        EXPECT_EQ(product(c, x, *fp16, bias, epilogue),
                  conv2d(cpu_, x, *cpu_.make_weight(w.view()), bias, c.window, epilogue));
      }
    }
}

TEST_F(FewChannels, AlexNetsOwn) {
  const Case c{{1, 224, 224, 3}, {64, 3, 11, 11}, {11, 4, 2}};
  const Values x = integers(c.x, 1, 1), w = integers(c.w, 2), bias = integers({c.w[0]}, 3);
  EXPECT_EQ(product(c, x, *cuda_.make_weight(w.view(), Precision::float16), bias),
            conv2d(cpu_, x, *cpu_.make_weight(w.view()), bias, c.window));
}

TEST_F(FewChannels, IsOneKernelAndNotThePlainOne) {
  for (const Case& c : convolutions) {
    const Values x = uniform(c.x, 1), w = uniform(c.w, 2), bias = uniform({c.w[0]}, 3);
    const auto fp16 = cuda_.make_weight(w.view(), Precision::float16);
    auto& resident = static_cast<WeightCuda&>(*fp16);
    const Buffer<f16> input = fp16_on(cuda_, x);
    const Tensor<float> offset = on(cuda_, bias);
    Buffer<f16> result(cuda_, static_cast<size_t>(result_shape(c).elements()), MemoryCategory::data);
    const int64_t before = cuda_.stream().launches();
    const Activations y = TensorView<f16>(result.data(), result_shape(c));
    const ForwardProduct product = forward_product(y, TensorView<const f16>(input.data(), x.shape), resident,
                                                   offset.view(), c.window, Epilogue::none);
    const bool fits = c.x[0] > 0;
    EXPECT_EQ(route_forward(product.shape, cuda_.gpu()).product, fits ? Product::few_channels : Product::plain)
        << to_string(c.x);
    cuda_.conv2d_forward(y, product.x, *fp16, offset.view(), c.window, Epilogue::none);
    EXPECT_EQ(cuda_.stream().launches(), before + (fits ? 1 : 0));
  }
}

TEST_F(FewChannels, FusedPoolingHasTheBitsOfSeparatePooling) {
  // One band and more, one block and several; rows and columns that no window reaches; filters
  // that are no whole 16-byte vectors; batches with all filters in a block, and with a quarter of
  // them.
  const std::vector<Case> cases = {
      {{1, 7, 64, 3}, {64, 3, 3, 3}, {3, 2, 1}},       {{2, 23, 58, 2}, {20, 2, 3, 3}, {3, 1, 0}},
      {{3, 39, 56, 1}, {7, 1, 3, 3}, {3, 2, 28}},      {{70, 12, 60, 3}, {72, 3, 5, 5}, {5, 2, 2}},
      {{300, 7, 64, 1}, {8, 1, 2, 2}, {2, 2, 0}},      {{140, 9, 29, 2}, {1, 2, 1, 1}, {1, 1, 0}},
      {{1, 224, 224, 3}, {64, 3, 11, 11}, {11, 4, 2}}, {{264, 7, 32, 2}, {8, 2, 1, 1}, {1, 1, 0}},
      {{132, 7, 32, 2}, {8, 2, 1, 1}, {1, 1, 0}},
  };
  const Window pool{3, 2, 0};
  for (const Case& c : cases) {
    SCOPED_TRACE(to_string(c.x) + " by " + to_string(c.w));
    WeightCuda w(cuda_, quantized(c.w, parse_scheme("linear:4:channel"), 3), cuda_.stream());
    const Buffer<f16> fp16 = fp16_on(cuda_, uniform(c.x, 1));
    const TensorView<const f16> x(fp16.data(), c.x);
    const Tensor<float> bias = on(cuda_, uniform({c.w[0]}, 2));
    const Shape convolved = result_shape(c);
    const Shape pooled = {convolved[0], pool.output(convolved[1]), pool.output(convolved[2]), convolved[3]};
    Buffer<f16> between(cuda_, static_cast<size_t>(convolved.elements()), MemoryCategory::data);
    Buffer<f16> result = fp16_on(cuda_, Values(pooled, 77.0F));
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
    for (const Window& other : {Window{3, 2, 1}, Window{2, 2, 0}, Window{3, 1, 0}})
      EXPECT_FALSE(fuses_pooling(cuda_, y, x, w, c.window, other));
  }
}

TEST_F(FewChannels, PoolingKeepsNaN) {
  const Case c{{1, 3, 32, 2}, {8, 2, 1, 1}, {1, 1, 0}};
  Values input = uniform(c.x, 1);
  input.data[2 * 16] = std::numeric_limits<float>::quiet_NaN();  // pixel 16 of the first row
  WeightCuda w(cuda_, quantized(c.w, parse_scheme("linear:4:channel"), 3), cuda_.stream());
  const Buffer<f16> fp16 = fp16_on(cuda_, input);
  const Tensor<float> bias = on(cuda_, Values({8}));
  Buffer<f16> result(cuda_, 15 * 8, MemoryCategory::data);
  const TensorView<f16> y(result.data(), {1, 1, 15, 8});
  cuda_.conv2d_max_pool2d_forward(y, TensorView<const f16>(fp16.data(), c.x), w, bias.view(), c.window, Epilogue::relu,
                                  {3, 2, 0});
  const Values pooled = output_of(cuda_, y.shape(), [&](TensorView<float> floats) { cuda_.convert(floats, y); });
  for (size_t i = 0; i < pooled.data.size(); ++i) EXPECT_EQ(std::isnan(pooled.data[i]), i / 8 == 7 || i / 8 == 8) << i;
}

TEST_F(FewChannels, HugeWeightsKeepTheirPrecision) {
  const Case c = {{1, 8, 8, 2}, {9, 2, 3, 3}, {3, 1, 1}};
  const Values bias(Shape{9});
  constexpr float unit = 1 << 18;
  Values x = uniform(c.x, 1), w = uniform(c.w, 2);
  for (float& value : w.data) value *= unit;
  for (float& value : x.data) value /= 1 << 8;  // results are fp16 values
  const PackedTensor packed = quantize(w.view(), parse_scheme("linear:8"), "w");
  for (const bool pack : {false, true}) {
    const auto on_cpu = pack ? cpu_.make_weight(packed) : cpu_.make_weight(w.view());
    const auto weight = pack ? cuda_.make_weight(packed) : cuda_.make_weight(w.view(), Precision::float16);
    EXPECT_LE(relative_error(product(c, x, *weight, bias).view(), conv2d(cpu_, x, *on_cpu, bias, c.window).view()),
              float16_tolerance);
  }
}

}  // namespace
}  // namespace nibblenet
