#include <gtest/gtest.h>

#include <vector>

#include "engine/io/preprocess.h"
#include "tests/kernels/values.h"
#include "tests/support/golden.h"
#include "tests/support/test_backend.h"

// A backend's folded convolution against its definition (engine/core/fold.h). The definition is
// checked in tests/engine/core/fold_test.cpp.

namespace nibblenet {
namespace {

using testing::make_test_backend;
using testing::on;
using testing::output_of;
using testing::relative_error;
using testing::uniform;
using testing::Values;

struct Case {
  int width, height, crop;
  int64_t channels, size, stride, padding;
  int64_t batch = 2;
};

FoldedConvolution folded_of(const Case& c) {
  const Values weights = uniform({c.channels, 3, c.size, c.size}, 1), bias = uniform({c.channels}, 2);
  return fold_convolution(weights.view(), bias.view(), c.stride, c.padding,
                          make_resample_tables(Preprocess::for_image_size(c.crop), c.width, c.height));
}

std::vector<uint8_t> random_images(const Case& c) {
  std::vector<uint8_t> images(static_cast<size_t>(c.batch * c.height * c.width * 3));
  Random random(3);
  for (uint8_t& pixel : images) pixel = static_cast<uint8_t>(random.below(256));
  return images;
}

/// In double, by the definition.
Values expected_of(const FoldedConvolution& f, const std::vector<uint8_t>& images, int64_t batch, Epilogue epilogue) {
  Values y({batch, f.rows(), f.columns(), f.channels_out});
  auto* to = y.data.data();
  for (int64_t n = 0; n < batch; ++n)
    for (size_t p = 0; p < f.vertical.first.size(); ++p)
      for (size_t q = 0; q < f.horizontal.first.size(); ++q)
        for (int64_t k = 0; k < f.channels_out; ++k) {
          const int64_t s = f.vertical.pattern[p] * int64_t{f.horizontal.patterns} + f.horizontal.pattern[q];
          auto sum = static_cast<double>(f.biases[static_cast<size_t>(s * f.channels_out + k)]);
          for (int64_t i = 0; i < f.length(); ++i) {
            const int64_t c = i % 3, b = i / 3 % f.horizontal.taps, a = i / 3 / f.horizontal.taps;
            const int64_t at = ((n * f.height + f.vertical.first[p] + a) * f.width + f.horizontal.first[q] + b) * 3 + c;
            const float filter = f.filters[static_cast<size_t>((s * f.length() + i) * f.channels_out + k)];
            sum += static_cast<double>(filter) * (images[static_cast<size_t>(at)] - f.center[static_cast<size_t>(c)]);
          }
          *to++ = static_cast<float>(epilogue == Epilogue::relu && sum < 0 ? 0 : sum);
        }
  return y;
}

class FoldedConv2dTest : public ::testing::Test {
 protected:
  Values run(const Case& c, const FoldedConvolution& folded, const std::vector<uint8_t>& images, Epilogue epilogue) {
    const auto operation = backend_->make_folded_conv2d(folded, Precision::float32);
    Tensor<uint8_t> input(*backend_, {c.batch, c.height, c.width, 3}, MemoryCategory::data);
    backend_->copy_from_host(input.data(), images.data(), images.size());
    return output_of(*backend_, {c.batch, folded.rows(), folded.columns(), c.channels},
                     [&](TensorView<float> y) { operation->run(y, std::as_const(input).view(), epilogue); });
  }
  std::unique_ptr<Backend> backend_ = make_test_backend();
};

/// AlexNet's with 64 channels, tiles and remainders of every width; the patterns of other sizes of
/// images; no image.
const Case cases[] = {{32, 32, 224, 64, 11, 4, 2, 1}, {32, 32, 112, 80, 11, 4, 2},    {16, 16, 112, 7, 11, 4, 2},
                      {18, 16, 56, 129, 7, 3, 1, 3},  {32, 32, 112, 15, 11, 4, 2, 0}, {2, 2, 21, 1, 5, 2, 4, 5}};

TEST_F(FoldedConv2dTest, EveryOutputIsItsDefinition) {
  for (const Case& c : cases) {
    const FoldedConvolution folded = folded_of(c);
    const std::vector<uint8_t> images = random_images(c);
    for (const Epilogue epilogue : {Epilogue::none, Epilogue::relu}) {
      SCOPED_TRACE(::testing::Message() << c.width << " x " << c.height << ", " << c.channels << " channels, relu "
                                        << (epilogue == Epilogue::relu));
      const Values actual = run(c, folded, images, epilogue);
      const Values expected = expected_of(folded, images, c.batch, epilogue);
      if (c.batch == 0) continue;
      EXPECT_LE(relative_error(actual.view(), expected.view()), 1e-6);
    }
  }
}

TEST_F(FoldedConv2dTest, KeepsNan) {
  const Case c{32, 32, 112, 64, 11, 4, 2, 1};
  FoldedConvolution folded = folded_of(c);
  folded.filters[0] = std::numeric_limits<float>::quiet_NaN();  // of channel 0, under the first pattern
  const Values y = run(c, folded, random_images(c), Epilogue::relu);
  EXPECT_TRUE(std::isnan(y.data[0]));
  EXPECT_FALSE(std::isnan(y.data[1]));
}

TEST_F(FoldedConv2dTest, CountsItsBytesAndRefusesOtherImages) {
  const Case c{32, 32, 112, 9, 11, 4, 2};
  const FoldedConvolution folded = folded_of(c);
  const auto operation = backend_->make_folded_conv2d(folded, Precision::float32);
  EXPECT_EQ(static_cast<int64_t>(backend_->meter().live_total()), operation->resident().total());
  EXPECT_GE(operation->resident().weights, static_cast<int64_t>(folded.filters.size() * sizeof(float)));
  EXPECT_EQ(operation->resident().biases, static_cast<int64_t>(folded.biases.size() * sizeof(float)));
  Tensor<float> y(*backend_, {1, folded.rows(), folded.columns(), 9}, MemoryCategory::data);
  Tensor<uint8_t> images(*backend_, {1, 32, 31, 3}, MemoryCategory::data);
  EXPECT_THROW(operation->run(y.view(), std::as_const(images).view(), Epilogue::none), ShapeError);
  Tensor<uint8_t> two(*backend_, {2, 32, 32, 3}, MemoryCategory::data);
  EXPECT_THROW(operation->run(y.view(), std::as_const(two).view(), Epilogue::none), ShapeError);
}

}  // namespace
}  // namespace nibblenet
