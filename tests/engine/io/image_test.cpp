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

/// A zlib stream of `count` zeros (a multiple of 258): one fixed Huffman block, a literal and matches of length 258 at
/// distance 1, 13 bits each.
Bytes zeros_compressed(size_t count) {
  Bytes stream = {0x78, 0x01};
  unsigned bits = 0;
  int held = 0;
  const auto put = [&](unsigned value, int width) {  // the lowest bit first
    bits |= value << held;
    for (held += width; held >= 8; held -= 8, bits >>= 8) stream.push_back(static_cast<uint8_t>(bits));
  };
  put(0b011, 3);       // last block, fixed codes
  put(0b00001100, 8);  // literal 0: 00110000, from its highest bit
  for (size_t done = 1; done < count; done += 258) {
    put(0b10100011, 8);  // length 258: 11000101
    put(0, 5);           // distance 1
  }
  put(0, 7);  // end of block
  put(0, 7);
  return stream;
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

/// Few bytes may not ask for much memory, whatever they announce: not as the picture's size, as a chunk's length (the
/// decoder would take it at once), or as what the compressed data grows to.
TEST(Image, TakesNoMoreMemoryThanAFileCanBeWorth) {
  Bytes file = plain_png(4, 4, {9, 8, 7});
  const Bytes size = {0x00, 0x00, 0x1F, 0x40, 0x00, 0x00, 0x1F, 0x40};  // 8000 x 8000, which a larger file may have
  std::copy(size.begin(), size.end(), file.begin() + 16);
  EXPECT_THAT(refusal(file), HasSubstr("more than its"));

  file = plain_png(4, 4, {9, 8, 7});
  constexpr size_t data_chunk = 8 + 25;
  file[data_chunk] = 0x3F;  // a gigabyte
  EXPECT_THAT(refusal(file), HasSubstr("ends early"));

  // 64 MiB of zeros in place of a 4 x 4 picture's own pixels.
  file = plain_png(4, 4, {9, 8, 7});
  EXPECT_EQ(refusal(file), "");
  file = png_of_stream(4, 4, zeros_compressed(64 << 20));
  EXPECT_LT(file.size(), 500'000U);
  EXPECT_THAT(refusal(file), HasSubstr("cannot be decoded"));
}

/// Every scan is a walk over the whole picture.
TEST(Image, RefusesJpegsOfCountlessScans) {
  Bytes file = grey_jpeg();
  const Bytes marker = {0xFF, 0xDA};
  const auto at = std::search(file.begin(), file.end(), marker.begin(), marker.end()) - file.begin();
  const Bytes scan(file.begin() + at, file.end() - 2);
  Bytes more;
  for (int i = 0; i < 300; ++i) append(more, scan);
  file.insert(file.begin() + at, more.begin(), more.end());
  EXPECT_THAT(refusal(file), HasSubstr("too many scans"));
}

TEST(Image, KindsByName) {
  for (const char* name : {"a.jpg", "a.JPEG", "dir.x/b.Png", ".png"})
    EXPECT_EQ(picture_kind(name), PictureKind::readable) << name;
  for (const char* name : {"a.webp", "a.GIF", "a.heic"}) EXPECT_EQ(picture_kind(name), PictureKind::unreadable) << name;
  for (const char* name : {"", "a", "jpg", "a.jpg.txt", "a.jpg~"}) EXPECT_EQ(picture_kind(name), PictureKind::none);
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
