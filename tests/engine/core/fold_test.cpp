#include "engine/core/fold.h"

#include <gtest/gtest.h>

#include "engine/core/random.h"
#include "engine/io/preprocess.h"
#include "tests/support/unrounded.h"

namespace nibblenet {
namespace {

/// A convolution behind the preparation of images of one size.
struct Case {
  int width, height, resize, crop;
  int64_t size, stride, padding;
};

ResampleTables tables_of(const Case& c) {
  Preprocess preprocess;
  preprocess.resize = c.resize;
  preprocess.crop = c.crop;
  return make_resample_tables(preprocess, c.width, c.height);
}

std::vector<float> random_floats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = 2.0F * random.uniform() - 1.0F;
  return values;
}

constexpr int64_t filters = 3;

struct Convolution {
  std::vector<float> weights, biases;
  Shape shape;
  TensorView<const float> w() const { return {weights.data(), shape}; }
  TensorView<const float> bias() const { return {biases.data(), {filters}}; }
};

Convolution random_convolution(int64_t size) {
  return {random_floats(filters * 3 * size * size, 1), random_floats(filters, 2), {filters, 3, size, size}};
}

FoldedConvolution fold(const Case& c) {
  const Convolution convolution = random_convolution(c.size);
  return fold_convolution(convolution.w(), convolution.bias(), c.stride, c.padding, tables_of(c));
}

/// One output of the convolution of the prepared image.
double convolved(const Case& c, const Convolution& convolution, const std::vector<double>& x, int64_t p, int64_t q,
                 int64_t k) {
  auto sum = static_cast<double>(convolution.biases[static_cast<size_t>(k)]);
  for (int64_t channel = 0; channel < 3; ++channel)
    for (int64_t r = 0; r < c.size; ++r)
      for (int64_t s = 0; s < c.size; ++s) {
        const int64_t i = p * c.stride - c.padding + r, j = q * c.stride - c.padding + s;
        if (i < 0 || i >= c.crop || j < 0 || j >= c.crop) continue;
        const float weight = convolution.weights[static_cast<size_t>(((k * 3 + channel) * c.size + r) * c.size + s)];
        sum += static_cast<double>(weight) * x[static_cast<size_t>((i * c.crop + j) * 3 + channel)];
      }
  return sum;
}

/// The same output by the definition in fold.h.
double folded_output(const FoldedConvolution& f, const std::vector<uint8_t>& image, int64_t p, int64_t q, int64_t k) {
  const auto row = static_cast<size_t>(p), column = static_cast<size_t>(q);
  const int64_t s = f.vertical.pattern[row] * int64_t{f.horizontal.patterns} + f.horizontal.pattern[column];
  auto sum = static_cast<double>(f.biases.at(static_cast<size_t>(s * f.channels_out + k)));
  for (int a = 0; a < f.vertical.taps; ++a)
    for (int b = 0; b < f.horizontal.taps; ++b)
      for (int c = 0; c < 3; ++c) {
        const int at = (f.vertical.first[row] + a) * f.width + f.horizontal.first[column] + b;
        const int64_t index = (((s * f.vertical.taps + a) * f.horizontal.taps + b) * 3 + c) * f.channels_out + k;
        sum += static_cast<double>(f.filters.at(static_cast<size_t>(index))) *
               (image.at(static_cast<size_t>(at * 3 + c)) - f.center[static_cast<size_t>(c)]);
      }
  return sum;
}

TEST(Fold, AlexNetOnCifarHasFourPatternsOfFourPixelsEachWay) {
  const FoldedConvolution folded = fold({32, 32, 256, 224, 11, 4, 2});
  for (const FoldedAxis& axis : {folded.vertical, folded.horizontal}) {
    EXPECT_EQ(axis.taps, 4);
    EXPECT_EQ(axis.patterns, 4);
    EXPECT_EQ(axis.first.size(), 55U);
    // One at each border, and two that alternate.
    std::vector<int64_t> outputs(4);
    for (const int32_t pattern : axis.pattern) ++outputs.at(static_cast<size_t>(pattern));
    EXPECT_EQ(outputs, (std::vector<int64_t>{1, 27, 26, 1}));
  }
  EXPECT_EQ(folded.rows() * folded.columns() * folded.length() * 64, 9'292'800) << "multiplications";
}

TEST(Fold, EveryOutputIsTheConvolutionOfTheEnlargedImage) {
  const Case cases[] = {{32, 32, 256, 224, 11, 4, 2}, {32, 32, 128, 112, 11, 4, 2}, {32, 32, 73, 64, 11, 4, 2},
                        {16, 16, 64, 64, 11, 4, 2},  // not cropped: windows reach over the source's border, too
                        {13, 9, 63, 57, 7, 3, 1},     {20, 31, 120, 65, 9, 5, 0},   {2, 2, 24, 21, 5, 2, 4},
                        {1, 1, 8, 8, 3, 1, 1}};
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.width << " x " << c.height << " to " << c.crop);
    const ResampleTables tables = tables_of(c);
    const Convolution convolution = random_convolution(c.size);
    const FoldedConvolution folded = fold(c);
    std::vector<uint8_t> image(static_cast<size_t>(c.width * c.height * 3));
    Random random(3);
    for (uint8_t& pixel : image) pixel = static_cast<uint8_t>(random.below(256));
    const std::vector<double> x = testing::unrounded(tables, image);
    const int64_t outputs = (c.crop + 2 * c.padding - c.size) / c.stride + 1;
    ASSERT_EQ(folded.rows(), outputs);
    ASSERT_EQ(folded.columns(), outputs);
    // Products of up to 363 values of about 2, each rounded to float32 once, when it was folded.
    for (int64_t p = 0; p < outputs; ++p)
      for (int64_t q = 0; q < outputs; ++q)
        for (int64_t k = 0; k < filters; ++k)
          ASSERT_NEAR(folded_output(folded, image, p, q, k), convolved(c, convolution, x, p, q, k), 3e-5)
              << p << ", " << q << ", " << k;
  }
}

TEST(Fold, PixelsAreCountedFromTheMean) {
  // 255 times 0.485, 0.456 and 0.406
  EXPECT_EQ(fold({32, 32, 256, 224, 11, 4, 2}).center, (std::array<int32_t, 3>{124, 116, 104}));
}

TEST(Fold, RefusesWhatItCannotSpeedUpOrDoesNotFit) {
  EXPECT_THROW(fold({256, 256, 256, 224, 11, 4, 2}), UsageError) << "not enlarged: 11 x 11 source pixels";
  EXPECT_THROW(fold({500, 300, 256, 224, 11, 4, 2}), UsageError);
  EXPECT_THROW(fold({97, 97, 256, 224, 11, 1, 2}), UsageError) << "hundreds of patterns";
  EXPECT_THROW(fold({32, 32, 8, 7, 11, 4, 1}), ShapeError) << "the window does not fit";
  const Case c{32, 32, 256, 224, 11, 4, 2};
  const Convolution convolution = random_convolution(11);
  const float bias[filters - 1] = {};
  EXPECT_THROW(fold_convolution(convolution.w(), {bias, {filters - 1}}, 4, 2, tables_of(c)), ShapeError);
  EXPECT_THROW(fold_convolution({convolution.w().data(), {filters, 11, 11, 3}}, convolution.bias(), 4, 2, tables_of(c)),
               ShapeError);
}

}  // namespace
}  // namespace nibblenet
