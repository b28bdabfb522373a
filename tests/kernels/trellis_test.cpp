#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <string>
#include <vector>

#include "kernels/cpu/backend_cpu.h"
#include "kernels/cpu/decode_cpu.h"
#include "kernels/cpu/trellis_cpu.h"
#include "tests/kernels/schemes.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using testing::conv2d;
using testing::dequantized;
using testing::linear;
using testing::quantized;
using testing::random_strings;
using testing::relative_error;
using testing::same_bits;
using testing::uniform;
using testing::Values;

std::vector<DecodePath> paths() {
  std::vector<DecodePath> all;
  for (const DecodePath path : {DecodePath::portable, DecodePath::avx2, DecodePath::avx512})
    if (path <= best_decode_path()) all.push_back(path);
  return all;
}

TEST(TrellisDecoder, EveryPathGivesTheBitsOfTheReference) {
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Shape& shape : {Shape{1, 1}, Shape{67, 5}, Shape{256, 3}, Shape{300, 70}, Shape{64, 3, 3, 3}}) {
      const PackedTensor packed = random_strings(shape, scheme);
      const Codebook codebook = codebook_of(packed);
      const PackedView view = view_of(packed, codebook);
      const int64_t columns = shape.inner_elements();
      std::vector<float> expected(static_cast<size_t>(columns));
      for (const DecodePath path : paths())
        for (int64_t channel = 0; channel < shape[0]; ++channel) {
          decode_reference(view, channel, 0, columns, expected.data());
          for (const int64_t k : {int64_t{0}, columns / 2}) {
            std::vector<float> actual(static_cast<size_t>(columns - k));
            decode(path, view, channel, k, columns - k, actual.data());
            ASSERT_TRUE(
                std::equal(actual.begin(), actual.end(), expected.begin() + k, expected.end(),
                           [](float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }))
                << to_string(scheme) << " of " << to_string(shape) << ", channel " << channel;
          }
        }
    }
}

/// One string that is padded, several, and one more channel than a multiple of eight; batches on
/// both sides of where panels are decoded.
TEST(TrellisProduct, LinearEqualsTheFloatPathToRounding) {
  CpuBackend backend(2);
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis))
    for (const Shape& shape : {Shape{65, 133}, Shape{521, 300}}) {
      const PackedTensor packed = random_strings(shape, scheme);
      const auto weight = backend.make_weight(packed), plain = backend.make_weight(dequantized(packed).view());
      const Values bias = uniform({shape[0]}, 5);
      for (const int64_t batch : {1, 2, 3, 7, 8, 9, 40}) {
        const Values x = uniform({batch, shape[1]}, static_cast<uint64_t>(batch));
        EXPECT_LE(relative_error(linear(backend, x, *weight, bias, Epilogue::relu).view(),
                                 linear(backend, x, *plain, bias, Epilogue::relu).view()),
                  1e-6)
            << to_string(scheme) << " " << to_string(shape) << ", batch " << batch;
      }
    }
}

TEST(TrellisProduct, DotsOfEveryPathAreNear) {
  for (const std::string scheme : {"trellis:0.5", "trellis:1.25", "trellis:2", "trellis:4"}) {
    const PackedTensor packed = random_strings({330, 600}, parse_scheme(scheme));
    const Codebook codebook = codebook_of(packed);
    const PackedView view = view_of(packed, codebook);
    const Values x = uniform({5, 600}, 1), weights = dequantized(packed);
    Values vectors;
    for (const DecodePath path : paths()) {
      Values y({5, 330});
      trellis_dots(path, view, 0, 128, x.data.data(), 5, y.data.data());
      trellis_dots(path, view, 128, 128, x.data.data(), 5, y.data.data());
      trellis_dots(path, view, 256, 74, x.data.data(), 5, y.data.data());
      for (int64_t n = 0; n < 5; ++n)
        for (int64_t k = 0; k < 330; ++k) {
          double expected = 0;
          for (int64_t c = 0; c < 600; ++c)
            expected += static_cast<double>(x.data[static_cast<size_t>(n * 600 + c)]) *
                        static_cast<double>(weights.data[static_cast<size_t>(k * 600 + c)]);
          EXPECT_NEAR(y.data[static_cast<size_t>(n * 330 + k)], expected, 1e-3) << scheme;
        }
      if (path == DecodePath::portable) continue;
      if (vectors.data.empty()) vectors = y;
      EXPECT_TRUE(same_bits(y, vectors)) << scheme << ": AVX2 and AVX-512 sum alike";
    }
  }
}

TEST(TrellisProduct, ConvolutionEqualsTheFloatPathBitForBit) {
  CpuBackend backend(2);
  const Window window{3, 1, 1};
  const Values x = uniform({2, 6, 5, 7}, 1), bias = uniform({70}, 2);
  for (const Scheme& scheme : schemes_of_every_width(Method::trellis)) {
    const PackedTensor packed = quantized({70, 7, 3, 3}, scheme, 3);
    EXPECT_TRUE(
        same_bits(conv2d(backend, x, *backend.make_weight(packed), bias, window, Epilogue::relu),
                  conv2d(backend, x, *backend.make_weight(dequantized(packed).view()), bias, window, Epilogue::relu)))
        << to_string(scheme);
  }
}

TEST(TrellisProduct, ResidentBytesAreTheMeteredOnes) {
  CpuBackend backend(1);
  const auto weight = backend.make_weight(random_strings({65, 17}, parse_scheme("trellis:0.75:f32")));
  const ResidentSize size = weight->resident();
  EXPECT_EQ(static_cast<int64_t>(backend.meter().live(MemoryCategory::codes)), size.codes + size.padding);
  EXPECT_EQ(static_cast<int64_t>(backend.meter().live_total()), size.total());
}

}  // namespace
}  // namespace nibblenet
