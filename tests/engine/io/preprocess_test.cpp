#include "engine/io/preprocess.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "engine/core/random.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;

std::vector<uint8_t> random_image(int width, int height) {
  std::vector<uint8_t> image(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
  Random random(7, static_cast<uint64_t>(width * 1000 + height));
  for (uint8_t& value : image) value = static_cast<uint8_t>(random.bits() >> 56);
  return image;
}

uint64_t fnv1a(const std::vector<uint8_t>& bytes) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001B3ULL;
  return hash;
}

/// Parameters whose result is byte / 255, from which the byte is recovered exactly.
Preprocess plain(int resize, int crop) { return {resize, crop, {0, 0, 0}, {1, 1, 1}}; }

std::vector<uint8_t> resized_bytes(Preprocessor& preprocessor, int width, int height, int crop, bool flip = false) {
  std::vector<float> out(static_cast<size_t>(crop * crop) * 3);
  preprocessor.run(random_image(width, height).data(), width, height, flip, out.data());
  std::vector<uint8_t> bytes;
  for (const float value : out) bytes.push_back(static_cast<uint8_t>(std::lround(value * 255.0F)));
  return bytes;
}

/// PyTorch's own result, half an 8-bit step apart at worst and the same on 99.9 % of the values.
TEST(Preprocess, MatchesGolden) {
  const SafetensorsFile file(golden_folder() / "layers.safetensors");
  const TensorEntry& images = file.at("preprocess/u8_nhwc");
  const Tensor<float> expected = golden(file, "preprocess/y_nchw");
  const int64_t count = expected.shape()[0];
  const auto crop = static_cast<int>(expected.shape()[2]);
  const int64_t plane = int64_t{crop} * crop;
  const auto height = static_cast<int>(images.sizes.at(1));
  const auto width = static_cast<int>(images.sizes.at(2));
  const Preprocess parameters;
  Preprocessor preprocessor(parameters);
  std::vector<float> out(static_cast<size_t>(plane) * 3);
  int64_t different = 0;
  for (int64_t n = 0; n < count; ++n) {
    preprocessor.run(images.bytes.data() + n * width * height * 3, width, height, false, out.data());
    for (int64_t i = 0; i < plane; ++i) {
      for (int64_t channel = 0; channel < 3; ++channel) {
        const float actual = out[static_cast<size_t>(3 * i + channel)];
        const float wanted = expected.data()[(n * 3 + channel) * plane + i];
        different += actual != wanted ? 1 : 0;
        ASSERT_LE(std::abs(actual - wanted), 0.5F / 255 / parameters.deviation[static_cast<size_t>(channel)]);
      }
    }
  }
  EXPECT_LE(different * 1000, count * 3 * plane);
}

struct PillowCase {
  int width, height, resize, crop;
  uint64_t hash;
};

/// Every byte that Pillow 13 gives (resize with BILINEAR, torchvision's sizes and crop) for random
/// images: enlarged, shrunk, tall, wide, cropped by odd and even amounts, one pixel, and unchanged.
TEST(Preprocess, GivesPillowsBytes) {
  const PillowCase cases[] = {
      {32, 32, 256, 224, 0x0D7F882D1637E94FULL}, {37, 53, 72, 63, 0xE85C9A41BD3359DFULL},
      {53, 37, 72, 63, 0xC2A5857718BBD408ULL},   {300, 200, 72, 63, 0x4483E43A75941DAAULL},
      {100, 20, 72, 63, 0x5D2B0AF1AF103A93ULL},  {1, 1, 8, 7, 0x9AA183778BBB73DCULL},
      {1, 9, 16, 14, 0x82CD42ECFB05788FULL},     {500, 333, 256, 224, 0x0A34B49507BAB417ULL},
      {64, 64, 64, 64, 0x9AFCB267EE38456EULL},   {45, 45, 256, 223, 0x02A93CC37577C2FEULL},
      {2, 700, 9, 8, 0x14C0DA84186C538DULL},     {256, 256, 256, 224, 0x634BC1F00E060886ULL},
  };
  for (const PillowCase& c : cases) {
    Preprocessor preprocessor(plain(c.resize, c.crop));
    EXPECT_EQ(fnv1a(resized_bytes(preprocessor, c.width, c.height, c.crop)), c.hash) << c.width << "x" << c.height;
  }
}

TEST(Preprocess, TablesFollowTheImageSize) {
  Preprocessor reused(plain(72, 63));
  for (const auto& [width, height] : {std::pair{37, 53}, {53, 37}, {37, 53}, {300, 200}, {1, 1}, {37, 53}}) {
    Preprocessor fresh(plain(72, 63));
    EXPECT_EQ(resized_bytes(reused, width, height, 63), resized_bytes(fresh, width, height, 63));
  }
}

TEST(Preprocess, FlipMirrorsTheResult) {
  for (const int crop : {62, 63}) {
    Preprocessor preprocessor(plain(72, crop));
    const auto straight = resized_bytes(preprocessor, 32, 40, crop);
    const auto flipped = resized_bytes(preprocessor, 32, 40, crop, true);
    const auto side = static_cast<size_t>(crop);
    for (size_t y = 0; y < side; ++y) {
      for (size_t x = 0; x < side; ++x) {
        for (size_t channel = 0; channel < 3; ++channel)
          ASSERT_EQ(straight[(y * side + x) * 3 + channel], flipped[(y * side + side - 1 - x) * 3 + channel]);
      }
    }
  }
}

/// (byte / 255 - mean) / deviation in float32 steps: all 256 x 3 values have torch's bits.
TEST(Preprocess, NormalisesWithTorchsBits) {
  Preprocess parameters;
  parameters.resize = parameters.crop = 1;
  Preprocessor preprocessor(parameters);
  std::vector<uint8_t> bits;
  for (size_t channel = 0; channel < 3; ++channel) {
    for (int value = 0; value < 256; ++value) {
      const auto byte = static_cast<uint8_t>(value);
      const uint8_t pixel[3] = {byte, byte, byte};
      float out[3];
      preprocessor.run(pixel, 1, 1, false, out);
      const auto* bytes = reinterpret_cast<const uint8_t*>(&out[channel]);
      bits.insert(bits.end(), bytes, bytes + sizeof(float));
    }
  }
  EXPECT_EQ(fnv1a(bits), 0xE24D709A66DE7CC0ULL);
}

TEST(Preprocess, ScalesWithTheImageSize) {
  const auto resize = [](int size) { return Preprocess::for_image_size(size).resize; };
  EXPECT_EQ(resize(224), 256);
  EXPECT_EQ(resize(63), 72);
  EXPECT_EQ(resize(64), 73);
  EXPECT_EQ(resize(1), 1);
  EXPECT_EQ(resize(31), 35);
  EXPECT_EQ(resize(32), 32) << "CIFAR-10's own size is taken as it is";
  EXPECT_EQ(resize(33), 38);
  EXPECT_EQ(Preprocess::for_image_size(63).crop, 63);
  EXPECT_EQ(resize(Preprocess::max_size), 18725);
  EXPECT_THROW(resize(0), UsageError);
  EXPECT_THROW(resize(-1), UsageError);
  EXPECT_THROW(resize(Preprocess::max_size + 1), UsageError);
}

TEST(Preprocess, RefusesImpossibleParameters) {
  EXPECT_THROW(Preprocessor(plain(7, 8)), UsageError);
  EXPECT_THROW(Preprocessor(plain(8, 0)), UsageError);
  EXPECT_THROW(Preprocessor(plain(1 << 20, 8)), UsageError);
  EXPECT_THROW(Preprocessor({8, 8, {0, 0, 0}, {1, 0, 1}}), UsageError);
  Preprocessor preprocessor(plain(8, 8));
  const uint8_t pixel[3] = {};
  float out[8 * 8 * 3];
  EXPECT_THROW(preprocessor.run(pixel, 0, 1, false, out), ShapeError);
  EXPECT_THROW(preprocessor.run(pixel, 1, -1, false, out), ShapeError);
}

}  // namespace
}  // namespace nibblenet
