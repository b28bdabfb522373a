#include "engine/io/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/core/random.h"
#include "tests/engine/io/io_helpers.h"

namespace nibblenet {
namespace {

using namespace testing;
using ::testing::HasSubstr;

std::string refusal(const Bytes& file) {
  return message_of<FormatError>([&] { decode_image(file, "cat.png"); });
}

TEST(Image, DecodesPngExactly) {
  const Bytes rgb = {1, 2, 3, 4, 5, 6, 7, 8, 9, 250, 251, 252, 253, 254, 255, 0, 0, 0};
  const RgbImage image = decode_image(png(3, 2, rgb), "x");
  EXPECT_EQ(image.width, 3);
  EXPECT_EQ(image.height, 2);
  EXPECT_EQ(image.pixels, rgb);
}

TEST(Image, DecodesGreyJpegAsRgb) {
  const RgbImage image = decode_image(grey_jpeg(), "x");
  EXPECT_EQ(image.width, 8);
  EXPECT_EQ(image.height, 8);
  EXPECT_EQ(image.pixels, Bytes(8 * 8 * 3, 123));
}

TEST(Image, RefusesWhatIsNoImageByName) {
  EXPECT_THAT(refusal({}), HasSubstr("cat.png"));
  EXPECT_THAT(refusal(bytes_of_text("GIF89a, perhaps")), HasSubstr("not a readable JPEG or PNG"));
}

TEST(Image, RefusesEveryTruncation) {
  for (const Bytes& whole : {grey_jpeg(), plain_png(4, 4, {9, 8, 7})}) {
    for (size_t length = 0; length + 12 < whole.size(); ++length) {  // 12: PNG's empty last chunk
      EXPECT_NE(refusal({whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length)}), "") << length;
    }
  }
}

/// The picture that a JPEG's header holds as a thumbnail has an end marker, too.
TEST(Image, TheEndMarkerOfAThumbnailIsNotTheEnd) {
  Bytes file = grey_jpeg();
  const Bytes segment = {0xFF, 0xE1, 0x00, 0x06, 0xFF, 0xD8, 0xFF, 0xD9};
  file.insert(file.begin() + 2, segment.begin(), segment.end());
  EXPECT_EQ(refusal(file), "");
  file.pop_back();
  file.pop_back();
  EXPECT_THAT(refusal(file), HasSubstr("ends early"));
}

TEST(Image, RefusesEnormousPicturesBeforeDecodingThem) {
  Bytes file = plain_png(4, 4, {9, 8, 7});
  const Bytes size = {0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x40, 0x00};  // 16384 x 16384
  std::copy(size.begin(), size.end(), file.begin() + 16);
  EXPECT_THAT(refusal(file), HasSubstr("16384 x 16384"));
  EXPECT_THAT(refusal(Bytes(max_image_file_bytes + 1)), HasSubstr("bytes"));
}

/// 16 counts of 255 are 4080 symbols, of which the decoder has room for 256.
TEST(Image, RefusesOverlongHuffmanTables) {
  Bytes file = grey_jpeg();
  const Bytes marker = {0xFF, 0xC4};
  const auto table = std::search(file.begin(), file.end(), marker.begin(), marker.end());
  ASSERT_NE(table, file.end());
  std::fill_n(table + 5, 16, uint8_t{255});
  EXPECT_THAT(refusal(file), HasSubstr("bad Huffman table"));
  file = grey_jpeg();
  file.insert(file.begin(), 0xFF);  // the decoder would take fill bytes in front
  EXPECT_THAT(refusal(file), HasSubstr("no start marker"));
}

/// Damaged files give an error or some picture, never anything worse: for the sanitizers.
TEST(Image, SurvivesDamage) {
  Random random(3);
  for (const Bytes& whole : {grey_jpeg(), plain_png(4, 4, {9, 8, 7})}) {
    for (int i = 0; i < 2000; ++i) {
      Bytes damaged = whole;
      for (int change = 0; change < 3; ++change)
        damaged[random.below(damaged.size())] = static_cast<uint8_t>(random.bits());
      refusal(damaged);
    }
  }
}

}  // namespace
}  // namespace nibblenet
