#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cuda/backend_cuda.h"
#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/weights/weight_cuda.h"
#include "tests/kernels/cuda/convolution_cases.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

// Convolutions of few output pixels against the CPU.

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
using testing::same_bits;
using testing::superblock_methods;
using testing::uniform;
using testing::Values;

/// Activations and weights rounded to 11 bits.
constexpr double float16_tolerance = 2e-3;

using Case = testing::ConvolutionCase;

/// Around 32 pixels: fewer superblocks than warps, as many, and more; no split-K, split-K, and so
/// many blocks that a warp has four superblocks. Of the last three, warps move on by whole taps and
/// by slices of channels, into the next column and row, or inside one tap.
const std::vector<Case> cases = [] {
  std::vector<Case> all = testing::superblock_convolutions;
  for (const Case& more : std::vector<Case>{{{4, 2, 4, 512}, {64, 512, 1, 1}, {1, 1, 0}},
                                            {{1, 3, 11, 320}, {128, 320, 1, 1}, {1, 1, 0}},
                                            {{3, 28, 28, 64}, {12, 64, 5, 5}, {5, 1, 2}},
                                            {{1, 1, 1, 64}, {64, 64, 7, 7}, {7, 1, 3}},
                                            {{1, 46, 47, 192}, {8, 192, 3, 3}, {3, 1, 1}},
                                            {{1, 47, 46, 320}, {3, 320, 2, 2}, {2, 1, 0}},
                                            {{2, 33, 33, 1088}, {5, 1088, 1, 1}, {1, 1, 0}}})
    all.push_back(more);
  return all;
}();

std::string name_of(const Case& c) { return to_string(c.x) + " by " + to_string(c.w); }

Values rounded(Values values) {
  for (float& value : values.data) value = f16_to_f32(f32_to_f16(value));
  return values;
}

/// Whether few_pixels takes a product of fp16 activations.
bool has_few_pixels(const Shape& x, const WeightCuda& w, Window window) {
  return route_forward(product_case(x, product_shape(x, w.shape(), window), window, w.traits()), {}).product ==
         Product::few_pixels;
}

class FewPixels : public ::testing::Test {
 protected:
  /// `y_precision` of the result before it is read back.
  Values product(const Case& c, const Values& x, Weight& w, const Values& bias, Epilogue epilogue = Epilogue::none,
                 Precision y_precision = Precision::float32) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const TensorView<const f16> halves_of_x(input.data(), c.x);
    const Tensor<float> offset = on(cuda_, bias);
    const auto& resident = static_cast<WeightCuda&>(w);
    const int64_t kernels = resident.layout() == WeightLayout::superblocks ? 1 : 2;
    EXPECT_TRUE(has_few_pixels(halves_of_x.shape(), resident, c.window)) << name_of(c);
    return output_of(cuda_, c.result_shape(), [&](TensorView<float> y) {
      Buffer<f16> fp16 = fp16_on(cuda_, Values(y.shape(), std::numeric_limits<float>::quiet_NaN()));
      const Activations of_fp16 = TensorView<f16>(fp16.data(), y.shape());
      const int64_t launches = cuda_.stream().launches();
      cuda_.conv2d_forward(y_precision == Precision::float32 ? Activations(y) : of_fp16, halves_of_x, w, offset.view(),
                           c.window, epilogue);
      EXPECT_EQ(cuda_.stream().launches(), launches + kernels);
      if (y_precision == Precision::float16) cuda_.convert(y, of_fp16);
    });
  }
  Values product(const Case& c, const Values& x, const PackedTensor& packed, const Values& bias,
                 Epilogue epilogue = Epilogue::none, Precision y_precision = Precision::float32) {
    WeightCuda w(cuda_, packed, cuda_.stream(), WeightLayout::superblocks);
    return product(c, x, w, bias, epilogue, y_precision);
  }

  Values expected(const Case& c, const Values& x, const PackedTensor& packed, const Values& bias,
                  Epilogue epilogue = Epilogue::none) {
    return conv2d(cpu_, x, *cpu_.make_weight(packed), bias, c.window, epilogue);
  }

  CpuBackend cpu_{2};
  CudaBackend cuda_;
};

class FewPixelsOf : public FewPixels, public ::testing::WithParamInterface<MethodTraits> {};

TEST_P(FewPixelsOf, EveryWidth) {
  const Case c = cases[0];
  const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
  for (int bits = GetParam().min_bits; bits <= GetParam().max_bits; ++bits)
    for (const std::string rest : {"tensor", "channel", "channel:zero-point"}) {
      if (rest == "channel:zero-point" && GetParam().method != Method::linear) continue;
      const PackedTensor packed = quantized(c.w, parse_scheme(fmt::format("{}:{}:{}", GetParam().name, bits, rest)), 3);
      for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu})
        EXPECT_LE(
            relative_error(product(c, x, packed, bias, epilogue).view(), expected(c, x, packed, bias, epilogue).view()),
            float16_tolerance)
            << bits << " bits, " << rest;
    }
}

INSTANTIATE_TEST_SUITE_P(Methods, FewPixelsOf, ::testing::ValuesIn(superblock_methods()),
                         [](const auto& instance) { return identifier(instance.param.name); });

TEST_F(FewPixels, IsExactForIntegersOfAwkwardShapes) {
  // A scale of 2^(n-1) - 1 makes linear's steps 1: weights are integers, and so is every partial
  // sum.
  int bits = 2;
  for (const Case& c : cases) {
    SCOPED_TRACE(name_of(c));
    const int64_t largest = (int64_t{1} << (bits - 1)) - 1;
    Values weights = integers(c.w, 3, largest);
    weights.data[0] = static_cast<float>(largest);
    const PackedTensor packed = quantize(weights.view(), parse_scheme(fmt::format("linear:{}:tensor", bits)), "w");
    const Values x = integers(c.x, 5), bias = integers({c.w[0]}, 4);
    EXPECT_EQ(product(c, x, packed, bias), expected(c, x, packed, bias)) << bits << " bits";
    bits = bits == 8 ? 2 : bits + 1;
  }
}

TEST_F(FewPixels, Fp16Weights) {
  for (const Case& c : cases) {  // in superblocks where there are whole ones
    SCOPED_TRACE(name_of(c));
    const Values weights = integers(c.w, 3), x = integers(c.x, 5, 2), bias = integers({c.w[0]}, 4);
    const auto w = cuda_.make_weight(weights.view(), Precision::float16);
    const Values expected = conv2d(cpu_, x, *cpu_.make_weight(weights.view()), bias, c.window, Epilogue::relu);
    EXPECT_EQ(product(c, x, *w, bias, Epilogue::relu), expected);
    EXPECT_EQ(product(c, x, *w, bias, Epilogue::relu, Precision::float16), rounded(expected));
  }
}

TEST_F(FewPixels, EveryOtherWayToStoreWeights) {
  // Scales that change along k: superblocks exist in the workspace only.
  for (const Case& c : {cases[0], cases[2]})
    for (const char* scheme : {"linear:4:block:64", "linear:3:block:7:zero-point", "nf4:4:block:64", "kmeans:3:row",
                               "fp8-e4m3:8:tile:3x5", "linear:2:block:16", "stable-embedding:5"}) {
      SCOPED_TRACE(name_of(c) + ", " + scheme);
      const PackedTensor packed = quantized(c.w, parse_scheme(scheme), 3);
      const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
      const auto w = cuda_.make_weight(packed);
      EXPECT_EQ(static_cast<WeightCuda&>(*w).layout(), WeightLayout::channels);
      EXPECT_LE(relative_error(product(c, x, *w, bias, Epilogue::relu).view(),
                               expected(c, x, packed, bias, Epilogue::relu).view()),
                float16_tolerance);
    }
}

TEST_F(FewPixels, Fp16ResultsAreTheRoundedOnes) {
  for (const Case& c : cases) {
    SCOPED_TRACE(name_of(c));
    const PackedTensor packed = quantized(c.w, parse_scheme("linear:3:channel"), 3);
    const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
    const Values floats = product(c, x, packed, bias, Epilogue::relu);
    EXPECT_TRUE(same_bits(product(c, x, packed, bias, Epilogue::relu, Precision::float16), rounded(floats)));
  }
}

TEST_F(FewPixels, GivesTheSameBitsAgain) {
  for (const Case& c : {cases[1], cases[3], cases[8]}) {
    const PackedTensor packed = quantized(c.w, parse_scheme("nf4:4:channel"), 3);
    const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
    EXPECT_TRUE(same_bits(product(c, x, packed, bias), product(c, x, packed, bias))) << name_of(c);
  }
}

TEST_F(FewPixels, ResultsAnywhereInMemory) {
  // fp16 values of y that do not lie on 8 bytes.
  const Case c = cases[1];
  const PackedTensor packed = quantized(c.w, parse_scheme("linear:4:channel"), 3);
  const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
  WeightCuda w(cuda_, packed, cuda_.stream(), WeightLayout::superblocks);
  const Buffer<f16> input = fp16_on(cuda_, x);
  const Tensor<float> offset = on(cuda_, bias);
  Buffer<f16> fp16(cuda_, static_cast<size_t>(c.result_shape().elements()) + 1, MemoryCategory::data);
  const Values actual = output_of(cuda_, c.result_shape(), [&](TensorView<float> y) {
    const TensorView<f16> odd(fp16.data() + 1, y.shape());
    cuda_.conv2d_forward(odd, TensorView<const f16>(input.data(), c.x), w, offset.view(), c.window, Epilogue::none);
    cuda_.convert(y, odd);
  });
  EXPECT_TRUE(same_bits(actual, rounded(product(c, x, packed, bias))));
}

TEST_F(FewPixels, AreTakenWhereLargeTilesLeaveMostOfAGpuIdle) {
  struct Layer {
    Case of_one_image;
    int64_t largest_batch;
  };
  // AlexNet's second to fifth convolutions.
  const std::vector<Layer> layers = {{{{1, 27, 27, 64}, {192, 64, 5, 5}, {5, 1, 2}}, 3},
                                     {{{1, 13, 13, 192}, {384, 192, 3, 3}, {3, 1, 1}}, 8},
                                     {{{1, 13, 13, 384}, {256, 384, 3, 3}, {3, 1, 1}}, 12},
                                     {{{1, 13, 13, 256}, {256, 256, 3, 3}, {3, 1, 1}}, 12}};
  for (const auto& [c, largest] : layers) {
    const WeightCuda w(cuda_, quantized(c.w, parse_scheme("linear:2:channel"), 1), cuda_.stream(),
                       WeightLayout::superblocks);
    for (int64_t batch = 1; batch <= 16; ++batch)
      EXPECT_EQ(has_few_pixels({batch, c.x[1], c.x[2], c.x[3]}, w, c.window), batch <= largest)
          << name_of(c) << ", batch " << batch;
  }
}

class PooledFewPixels : public FewPixels {
 protected:
  struct Pooled {
    Case c;
    Window pool;
  };
  static Shape pooled_shape(const Pooled& p) {
    const Shape y = p.c.result_shape();
    return {y[0], p.pool.output(y[1]), p.pool.output(y[2]), y[3]};
  }

  /// By one fused kernel, or by a convolution and a pooling. `flat`: then flattened.
  Values pooled(const Pooled& p, const Values& x, Weight& w, bool at_once, bool flat = false) {
    const Buffer<f16> input = fp16_on(cuda_, x);
    const TensorView<const f16> halves_of_x(input.data(), p.c.x);
    const Tensor<float> bias = on(cuda_, uniform({p.c.w[0]}, 2));
    const Shape between = p.c.result_shape(), shape = pooled_shape(p);
    Buffer<f16> results(cuda_, static_cast<size_t>(between.elements()), MemoryCategory::data);
    Buffer<f16> fp16 = fp16_on(cuda_, Values(shape, std::numeric_limits<float>::quiet_NaN()));
    Buffer<f16> unflattened(cuda_, fp16.size(), MemoryCategory::data);
    const TensorView<f16> y(fp16.data(), flat ? Shape{shape[0], shape.inner_elements()} : shape);
    return output_of(cuda_, y.shape(), [&](TensorView<float> floats) {
      const int64_t launches = cuda_.stream().launches();
      if (at_once) {
        ASSERT_TRUE(fuses_pooling(cuda_, y, halves_of_x, w, p.c.window, p.pool));
        cuda_.conv2d_max_pool2d_forward(y, halves_of_x, w, bias.view(), p.c.window, Epilogue::relu, p.pool);
        const bool in_place = static_cast<WeightCuda&>(w).layout() == WeightLayout::superblocks;
        EXPECT_EQ(cuda_.stream().launches(), launches + (in_place ? 1 : 2));
      } else {
        const TensorView<f16> of_conv(results.data(), between);
        cuda_.conv2d_forward(of_conv, halves_of_x, w, bias.view(), p.c.window, Epilogue::relu);
        const TensorView<f16> of_pool(flat ? unflattened.data() : fp16.data(), shape);
        cuda_.max_pool2d_forward(of_pool, {}, TensorView<const f16>(results.data(), between), p.pool);
        if (flat) cuda_.flatten_forward(y, TensorView<const f16>(unflattened.data(), shape));
      }
      cuda_.convert(floats, y);
    });
  }
};

TEST_F(PooledFewPixels, HasTheBitsOfSeparatePooling) {
  // One tile an image and many; tiles that end outside the image; rows and columns that no window
  // reaches; windows that overlap, that do not, that leave gaps, that are the whole image, and of 1
  // and of 36 results; split-K and none; filters that end inside a superblock; and AlexNet's second
  // convolution in small.
  const std::vector<Pooled> pooled_cases = {{{{3, 5, 5, 64}, {72, 64, 3, 3}, {3, 1, 1}}, {3, 2, 0}},
                                            {{{2, 13, 13, 128}, {64, 128, 3, 3}, {3, 1, 1}}, {3, 2, 0}},
                                            {{{1, 19, 17, 64}, {64, 64, 5, 5}, {5, 1, 2}}, {3, 2, 0}},
                                            {{{1, 6, 6, 192}, {8, 192, 3, 3}, {3, 1, 1}}, {2, 3, 0}},
                                            {{{2, 8, 7, 320}, {136, 320, 1, 1}, {1, 1, 0}}, {2, 1, 0}},
                                            {{{9, 4, 4, 64}, {64, 64, 1, 1}, {1, 1, 0}}, {4, 4, 0}},
                                            {{{33, 1, 1, 64}, {64, 64, 1, 1}, {1, 1, 0}}, {1, 1, 0}},
                                            {{{1, 19, 15, 64}, {20, 64, 1, 1}, {1, 1, 0}}, {6, 1, 0}},
                                            {{{2, 12, 9, 64}, {60, 64, 2, 2}, {2, 1, 1}}, {6, 5, 0}},
                                            {{{1, 11, 41, 64}, {4, 64, 3, 3}, {3, 2, 1}}, {1, 3, 0}},
                                            {{{1, 2, 37, 128}, {65 * 4, 128, 2, 2}, {2, 1, 0}}, {1, 1, 0}},
                                            {{{1, 31, 3, 640}, {12, 640, 3, 3}, {3, 1, 1}}, {3, 1, 0}},
                                            {{{1, 27, 27, 64}, {64, 64, 5, 5}, {5, 1, 2}}, {3, 2, 0}}};
  for (const Pooled& p : pooled_cases)
    for (const char* scheme : {"linear:4:channel", "nf4:4:block:64", "nf4:4:channel"}) {
      if (p.c.window.size > 3 && scheme != std::string_view("linear:4:channel"))
        continue;  // the largest, by one scheme
      if (p.pool.size == 6 && scheme == std::string_view("nf4:4:channel"))
        continue;  // does not fit beside the look-up table
      SCOPED_TRACE(name_of(p.c) + ", " + scheme);
      const auto w = cuda_.make_weight(quantized(p.c.w, parse_scheme(scheme), 3));
      const Values x = uniform(p.c.x, 1);
      for (const bool flat : {false, true, false})  // the last run finds the semaphores as the others left them
        EXPECT_TRUE(same_bits(pooled(p, x, *w, true, flat), pooled(p, x, *w, false, flat)));
    }
}

TEST(PooledTiles, HoldWholeWindowsInTheFewestTiles) {
  const auto up = [](int a, int b) { return (a + b - 1) / b; };
  for (const int most : {32, 36})
    for (int size = 1; size <= 8; ++size)
      for (int stride = 1; stride <= 5; ++stride)
        for (int p = 0; p <= 14; ++p)
          for (const int q : {1, 2, 3, 6, 13, 40}) {
            SCOPED_TRACE(fmt::format("{} x {} windows of {} at stride {}, {} results", p, q, size, stride, most));
            const PooledTiles tiles({.size = size, .stride = stride, .p = p, .q = q}, most);
            if (size * size > most || p == 0) {
              EXPECT_EQ(tiles.p, 0);
              continue;
            }
            EXPECT_LE(tiles.height() * tiles.width(), most);
            EXPECT_EQ(tiles.down, up(p, tiles.p));
            EXPECT_EQ(tiles.across, up(q, tiles.q));
            for (int rows = 1; rows <= p; ++rows)
              for (int columns = 1; columns <= q; ++columns)
                if (((rows - 1) * stride + size) * ((columns - 1) * stride + size) <= most) {
                  EXPECT_LE(tiles.of_image(), up(p, rows) * up(q, columns));
                }
          }
  // AlexNet's second and last convolution.
  const PooledTiles second({.size = 3, .stride = 2, .p = 13, .q = 13}, 36);
  EXPECT_EQ(second.of_image(), 35);
  EXPECT_EQ(second.height() * second.width(), 35);
  EXPECT_EQ(PooledTiles({.size = 3, .stride = 2, .p = 6, .q = 6}, 36).of_image(), 6);
  EXPECT_EQ(PooledTiles({.size = 3, .stride = 2, .p = 6, .q = 6}, 32).of_image(), 9);
}

TEST_F(PooledFewPixels, ClustersHaveTheBitsOfSemaphores) {
  // 2, 3, 4, 7, 8 splits, and 9, which are too many for a cluster; filters that end inside a
  // superblock; without pooling, with it and flattened.
  const std::vector<Case> split_cases = {
      {{1, 7, 7, 256}, {72, 256, 2, 2}, {2, 1, 0}},  {{2, 5, 6, 128}, {64, 128, 3, 3}, {3, 1, 1}},
      {{1, 5, 9, 512}, {200, 512, 2, 2}, {2, 1, 1}}, {{1, 6, 6, 384}, {132, 384, 3, 3}, {3, 1, 1}},
      {{1, 6, 7, 448}, {4, 448, 3, 3}, {3, 1, 1}},   {{1, 6, 7, 512}, {4, 512, 3, 3}, {3, 1, 1}}};
  std::set<int> splits;
  for (const Case& c : split_cases) {
    SCOPED_TRACE(name_of(c));
    const Pooled p{c, {3, 2, 0}};
    WeightCuda w(cuda_, quantized(c.w, parse_scheme("linear:4:channel:zero-point"), 3), cuda_.stream(),
                 WeightLayout::superblocks);
    const Values x = uniform(c.x, 1), bias = uniform({c.w[0]}, 2);
    splits.insert(FewPixelsBlocks(product_case(c.x, c.result_shape(), c.window, w.traits()).sizes).splits);
    std::vector<Values> by_semaphores;
    for (const bool clusters : {false, true}) {
      KernelChoice choice;
      choice.clusters = clusters;
      cuda_.choose_kernels(choice);
      const std::vector<Values> results = {product(c, x, w, bias),
                                           product(c, x, w, bias, Epilogue::relu, Precision::float16),
                                           pooled(p, x, w, true), pooled(p, x, w, true, true)};
      if (!clusters) by_semaphores = results;
      for (size_t i = 0; i < results.size(); ++i) EXPECT_TRUE(same_bits(results[i], by_semaphores[i])) << i;
    }
  }
  EXPECT_EQ(splits, (std::set<int>{2, 3, 4, 7, 8, 9}));
}

TEST_F(PooledFewPixels, KeepsNaN) {
  const Pooled p{{{1, 3, 3, 64}, {64, 64, 1, 1}, {1, 1, 0}}, {3, 2, 0}};
  Values x = uniform(p.c.x, 1);
  x.data[5] = std::numeric_limits<float>::quiet_NaN();
  const auto w = cuda_.make_weight(quantized(p.c.w, parse_scheme("linear:4:channel"), 3));
  for (const float value : pooled(p, x, *w, true).data) EXPECT_TRUE(std::isnan(value));
}

TEST_F(PooledFewPixels, LeavesOtherPoolingToAKernelOfItsOwn) {
  const Buffer<f16> x = fp16_on(cuda_, uniform({1, 20, 20, 64}, 1));
  Buffer<f16> y(cuda_, 20 * 20 * 64 + 1, MemoryCategory::data);
  const auto has = [&](int64_t filters, Window pool, int64_t first = 0) {
    const auto w = cuda_.make_weight(quantized({filters, 64, 1, 1}, parse_scheme("linear:4:channel"), 3));
    const Shape shape{1, pool.output(20), pool.output(20), filters};
    return fuses_pooling(cuda_, TensorView<f16>(y.data() + first, shape),
                         TensorView<const f16>(x.data(), {1, 20, 20, 64}), *w, {1, 1, 0}, pool);
  };
  EXPECT_TRUE(has(64, {3, 2, 0}));
  EXPECT_FALSE(has(64, {3, 2, 1}));  // padding
  EXPECT_TRUE(has(60, {6, 2, 0}));
  EXPECT_FALSE(has(62, {3, 2, 0}));     // results do not come in fours
  EXPECT_FALSE(has(64, {7, 1, 0}));     // large windows
  EXPECT_FALSE(has(64, {3, 2, 0}, 2));  // not on 8 bytes
  EXPECT_TRUE(has(64, {1, 1, 0}));
  EXPECT_TRUE(has(64, {6, 1, 0}));    // 225 tiles of one window
  EXPECT_FALSE(has(128, {6, 1, 0}));  // twice as many
}

TEST_F(FewPixels, OthersGoToOtherKernels) {
  // Channels that are no whole slice, weights in float32, and those that train in rows of fp16
  // values.
  const Case c = {{1, 4, 4, 40}, {8, 40, 3, 3}, {3, 1, 1}};
  const auto packed = cuda_.make_weight(quantized(c.w, parse_scheme("linear:4:channel"), 3));
  const auto has = [&](const Shape& x, const Weight& w) {
    return has_few_pixels(x, static_cast<const WeightCuda&>(w), c.window);
  };
  EXPECT_FALSE(has(c.x, *packed));
  const Values values = uniform({64, 64, 3, 3}, 1);
  EXPECT_FALSE(has({1, 4, 4, 64}, *cuda_.make_weight(values.view())));
  const WeightCuda trains(cuda_, values.view(), WeightCuda::TrainsInFp16{}, cuda_.stream(), WeightLayout::channels);
  EXPECT_FALSE(has({1, 4, 4, 64}, trains));
}

}  // namespace
}  // namespace nibblenet
