#include "engine/io/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

// jpeglib.h needs what <cstdio> declares.
// clang-format off
#include <cstdio>
#include <jpeglib.h>
// clang-format on

#include <algorithm>
#include <cstdlib>

#include "engine/core/random.h"
#include "tests/engine/io/io_helpers.h"
#include "tests/support/golden.h"

namespace nibblenet {
namespace {

using namespace testing;
using ::testing::HasSubstr;

std::string decoding_refusal(const Bytes& file) {
  return message_of<FormatError>([&] { decode_image(file, "cat.png"); });
}

/// A zlib stream of at least `count` zeros: one fixed Huffman block, a literal and matches of
/// length 258 at distance 1, 13 bits each.
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
  size_t done = 1;
  for (; done < count; done += 258) {
    put(0b10100011, 8);  // length 258: 11000101
    put(0, 5);           // distance 1
  }
  put(0, 7);  // end of block
  put(0, 7);
  append_big_endian(stream, static_cast<uint32_t>(done % 65521) << 16 | 1);  // Adler-32
  return stream;
}

struct JpegOptions {
  bool progressive = false;
  unsigned restart_interval = 0;
  int horizontal = 2, vertical = 2;  // pixels for one of each colour difference
};

/// A JPEG of a colour gradient.
Bytes jpeg(int width, int height, const JpegOptions& options) {
  jpeg_compress_struct encoder;
  jpeg_error_mgr errors;
  encoder.err = jpeg_std_error(&errors);
  jpeg_create_compress(&encoder);
  uint8_t* file = nullptr;
  unsigned long bytes = 0;
  jpeg_mem_dest(&encoder, &file, &bytes);
  encoder.image_width = static_cast<JDIMENSION>(width);
  encoder.image_height = static_cast<JDIMENSION>(height);
  encoder.input_components = 3;
  encoder.in_color_space = JCS_RGB;
  jpeg_set_defaults(&encoder);
  encoder.restart_interval = options.restart_interval;
  encoder.comp_info[0].h_samp_factor = options.horizontal;
  encoder.comp_info[0].v_samp_factor = options.vertical;
  if (options.progressive) jpeg_simple_progression(&encoder);
  jpeg_start_compress(&encoder, TRUE);
  for (int y = 0; y < height; ++y) {
    Bytes row;
    for (int x = 0; x < width; ++x)
      append(row, std::array{static_cast<uint8_t>(x * 7), static_cast<uint8_t>(y * 5), static_cast<uint8_t>(x * y)});
    uint8_t* rows = row.data();
    jpeg_write_scanlines(&encoder, &rows, 1);
  }
  jpeg_finish_compress(&encoder);
  Bytes result(file, file + bytes);
  jpeg_destroy_compress(&encoder);
  std::free(file);
  return result;
}

void append_little_endian(Bytes& bytes, uint32_t value, int count) {
  for (int i = 0; i < count; ++i) bytes.push_back(static_cast<uint8_t>(value >> 8 * i));
}

/// A BMP with a header of 40 bytes; `pixels` are its rows as they lie in the file.
Bytes bmp(int width, int height, int bits, const Bytes& palette, const Bytes& pixels) {
  Bytes file = {'B', 'M'};
  append_little_endian(file, static_cast<uint32_t>(54 + palette.size() + pixels.size()), 4);
  append_little_endian(file, 0, 4);
  append_little_endian(file, static_cast<uint32_t>(54 + palette.size()), 4);
  append_little_endian(file, 40, 4);
  append_little_endian(file, static_cast<uint32_t>(width), 4);
  append_little_endian(file, static_cast<uint32_t>(height), 4);
  append_little_endian(file, 1, 2);
  append_little_endian(file, static_cast<uint32_t>(bits), 2);
  for (int i = 0; i < 4; ++i) append_little_endian(file, 0, 4);
  append_little_endian(file, static_cast<uint32_t>(palette.size() / 4), 4);
  append_little_endian(file, 0, 4);
  append(file, palette);
  append(file, pixels);
  return file;
}

/// Three by two pixels: the lower row comes first, blue before green before red, each row of a
/// multiple of 4 bytes.
Bytes bmp_24() {
  return bmp(3, 2, 24, {}, {12, 11, 10, 15, 14, 13, 18, 17, 16, 0, 0, 0, 3, 2, 1, 6, 5, 4, 9, 8, 7, 0, 0, 0});
}

size_t first(const Bytes& file, const Bytes& what) {
  return static_cast<size_t>(std::search(file.begin(), file.end(), what.begin(), what.end()) - file.begin());
}

Bytes with_inserted(Bytes file, size_t at, const Bytes& what) {
  file.insert(file.begin() + static_cast<ptrdiff_t>(at), what.begin(), what.end());
  return file;
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

TEST(Image, DecodesBmps) {
  const Bytes rgb = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};
  EXPECT_EQ(decode_image(bmp_24(), "x").pixels, rgb);
  // Colour 0 and 1 are there; 2 and 3 are black, whatever was in memory, and so is all that lies
  // behind the palette.
  const Bytes palette = {30, 20, 10, 0, 60, 50, 40, 0};
  Bytes file = bmp(4, 1, 8, palette, {0, 1, 2, 3});
  const Bytes short_palette = {10, 20, 30, 40, 50, 60, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(decode_image(file, "x").pixels, short_palette);
  file[10] += 40;
  EXPECT_EQ(decode_image(with_inserted(file, 62, Bytes(40, 0x77)), "x").pixels, short_palette);
  for (const int bits : {1, 4}) EXPECT_EQ(decoding_refusal(bmp(2, 1, bits, palette, {0xFF, 0, 0, 0})), "") << bits;
}

/// Colours of three rows of five pixels, the lowest row first. The palette makes them grey: ten
/// times the colour.
Bytes run_length_coded(int bits, const Bytes& runs) {
  Bytes palette;
  for (uint8_t colour = 0; colour < 1 << bits && colour < 16; ++colour)
    append(palette, std::array<uint8_t, 4>{static_cast<uint8_t>(10 * colour), static_cast<uint8_t>(10 * colour),
                                           static_cast<uint8_t>(10 * colour), 0});
  Bytes file = bmp(5, 3, bits, palette, runs);
  file[30] = bits == 8 ? 1 : 2;
  return file;
}

TEST(Image, DecodesRunsOfBmps) {
  const Bytes bytes8 = {5, 7, 0, 0,                     // a row of 7
                        0, 3, 1, 2, 3, 0, 9, 4, 0, 0,   // three pixels, and a run that its row cuts
                        2, 6, 0, 2, 2, 0, 1, 8, 0, 1};  // a jump over two
  const Bytes bytes4 = {5, 0x77, 0, 0, 0, 3, 0x12, 0x30, 9, 0x44, 0, 0, 2, 0x66, 0, 2, 2, 0, 1, 0x80, 0, 1};
  const Bytes expected = {60, 60, 0, 0, 80, 10, 20, 30, 40, 40, 70, 70, 70, 70, 70};
  for (const auto& [bits, runs] : {std::pair{8, bytes8}, {4, bytes4}}) {
    const RgbImage image = decode_image(run_length_coded(bits, runs), "x");
    ASSERT_EQ(std::pair(image.width, image.height), std::pair(5, 3));
    Bytes grey;
    for (size_t i = 0; i < image.pixels.size(); i += 3) grey.push_back(image.pixels[i]);
    EXPECT_EQ(grey, expected) << bits;
    for (size_t length = 0; length < runs.size() - 2; ++length)  // the mark of the end may be missing
      EXPECT_THAT(
          decoding_refusal(run_length_coded(bits, {runs.begin(), runs.begin() + static_cast<ptrdiff_t>(length)})),
          HasSubstr("ends early"))
          << length;
  }
  // Jumps could make a picture of nothing.
  Bytes huge = run_length_coded(8, {0, 2, 255, 255});
  huge[19] = huge[23] = 0x20;
  EXPECT_THAT(decoding_refusal(huge), HasSubstr("more than its"));
}

/// The bit fields of a header of 56 bytes lie inside of it, those of 40 bytes behind.
TEST(Image, DecodesBitFieldsOfBmps) {
  const Bytes fields = {0xFF, 0, 0, 0, 0, 0xFF, 0, 0, 0, 0, 0xFF, 0, 0, 0, 0, 0xFF};  // red comes first
  Bytes pixels = {10, 20, 30, 255, 40, 50, 60, 0};
  const Bytes rgb = {10, 20, 30, 40, 50, 60};
  for (const uint8_t header : Bytes{56, 108, 124}) {
    Bytes file = bmp(2, 1, 32, {}, {});
    append(file, fields);
    file.resize(14 + size_t{header});
    append(file, pixels);
    file[10] = static_cast<uint8_t>(14 + header);
    file[14] = header;
    file[30] = 3;
    EXPECT_EQ(decode_image(file, "x").pixels, rgb) << int{header};
  }
  pixels = {1, 30, 20, 10, 2, 60, 50, 40};
  Bytes file = bmp(2, 1, 32, {0, 0, 0, 0xFF, 0, 0, 0xFF, 0, 0, 0xFF, 0, 0}, pixels);
  file[30] = 3;
  file[46] = 0;  // which bmp() counts as colours
  EXPECT_EQ(decode_image(file, "x").pixels, rgb);
  file[54] = 0x10;
  EXPECT_THAT(decoding_refusal(file),
              HasSubstr("bit fields ff000010, ff0000, ff00, 0 of 32 bits a pixel are not read"));
}

/// Some writers leave out where the pixels lie.
TEST(Image, FindsPixelsBehindThePalette) {
  Bytes file = bmp_24();
  const Bytes pixels = decode_image(file, "x").pixels;
  file[10] = 0;
  EXPECT_EQ(decode_image(file, "x").pixels, pixels);
  file = bmp(2, 1, 8, {1, 2, 3, 0, 4, 5, 6, 0}, {1, 0, 0, 0});
  for (const uint8_t place : Bytes{0, 54}) {
    file[10] = place;
    EXPECT_EQ(decode_image(file, "x").pixels, (Bytes{6, 5, 4, 3, 2, 1})) << int{place};
  }
}

/// A PNG whose compressed stream ends behind the last pixel, without its checksum, and where each
/// chunk is whole.
TEST(Image, ReadsPngsThatLackTheChecksumOfTheirPixels) {
  const Bytes file = plain_png(4, 4, {9, 8, 7});
  const Bytes whole(file.begin() + 8 + 25 + 8, file.end() - 12 - 4);  // between header and CRC
  const Bytes pixels = decode_image(file, "x").pixels;
  ASSERT_EQ(png_of_stream(4, 4, whole), file);
  for (size_t lacking = 1; lacking <= 4; ++lacking)
    EXPECT_EQ(
        decode_image(png_of_stream(4, 4, {whole.begin(), whole.end() - static_cast<ptrdiff_t>(lacking)}), "x").pixels,
        pixels)
        << lacking;
  for (size_t lacking = 5; lacking < whole.size(); ++lacking)
    EXPECT_NE(decoding_refusal(png_of_stream(4, 4, {whole.begin(), whole.end() - static_cast<ptrdiff_t>(lacking)})), "")
        << lacking;
}

/// The header of OS/2: 12 bytes, and colours of three.
TEST(Image, DecodesEveryColourOfTheOldestBmps) {
  for (const int bits : {1, 4, 8}) {
    const uint32_t colours = 1U << bits, last = colours - 1;
    Bytes file = {'B', 'M'};
    append_little_endian(file, 0, 4);
    append_little_endian(file, 0, 4);
    append_little_endian(file, 26 + 3 * colours, 4);
    append_little_endian(file, 12, 4);
    append_little_endian(file, 1, 2);
    append_little_endian(file, 1, 2);
    append_little_endian(file, 1, 2);
    append_little_endian(file, static_cast<uint32_t>(bits), 2);
    for (uint32_t colour = 0; colour < colours; ++colour) append_little_endian(file, (255 - colour) << 16 | 0x0203, 3);
    for (const uint32_t colour : {0U, last / 2, last}) {
      Bytes picture = file;
      append_little_endian(picture, colour << (8 - bits), 4);
      EXPECT_EQ(decode_image(picture, "x").pixels, (Bytes{static_cast<uint8_t>(255 - colour), 2, 3})) << bits;
    }
  }
}

TEST(Image, RefusesBmpsWithImpossibleHeaders) {
  for (const auto& [at, value] : std::vector<std::pair<size_t, Bytes>>{{10, {1, 0, 0, 0}},
                                                                       {10, {0xFF, 0xFF, 0xFF, 0x7F}},
                                                                       {14, {0xFF, 0xFF, 0xFF, 0xFF}},
                                                                       {18, {0, 0, 0, 0}},
                                                                       {18, {0xFF, 0xFF, 0xFF, 0xFF}},
                                                                       {18, {0xFF, 0xFF, 0xFF, 0x7F}},
                                                                       {22, {0, 0, 0, 0x80}},
                                                                       {22, {0, 0, 1, 0}},
                                                                       {28, {3, 0}},
                                                                       {28, {8, 0}},
                                                                       {30, {1, 0, 0, 0}}}) {
    Bytes file = bmp_24();
    std::copy(value.begin(), value.end(), file.begin() + static_cast<ptrdiff_t>(at));
    EXPECT_THAT(decoding_refusal(file), HasSubstr("cat.png")) << at;
  }
}

/// Stray bytes that Pillow and browsers read over: between segments, in front of a restart marker
/// and in place of the end marker. The pixels stay those of the whole file.
TEST(Image, ReadsJpegsWithStrayBytes) {
  for (const bool progressive : {false, true}) {
    for (const auto& [horizontal, vertical] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}}) {
      const Bytes whole = jpeg(41, 37, {progressive, 3, horizontal, vertical});
      const Bytes pixels = decode_image(whole, "x").pixels;
      for (const Bytes& marker :
           std::vector<Bytes>{{0xFF, 0xDB}, {0xFF, 0xC4}, {0xFF, 0xDA}, {0xFF, 0xD0}, {0xFF, 0xD1}}) {
        const size_t at = first(whole, marker);
        ASSERT_LT(at, whole.size());
        for (const Bytes& stray : std::vector<Bytes>{{0xFF, 0x00}, {0xFF}, {0x12, 0x34, 0x56}})
          EXPECT_EQ(decode_image(with_inserted(whole, at, stray), "x").pixels, pixels) << int{marker[1]};
      }
      const size_t end = whole.size() - 2;
      EXPECT_EQ(decode_image(with_inserted(whole, end, {0xFF, 0x00}), "x").pixels, pixels);
      EXPECT_EQ(decode_image(with_inserted(whole, whole.size(), {1, 2, 3}), "x").pixels, pixels);
      if (progressive) continue;  // it is only known to be complete at its end marker
      Bytes trailer(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(end));
      trailer.resize(trailer.size() + 64);
      EXPECT_EQ(decode_image(trailer, "x").pixels, pixels);
    }
  }
}

/// A PNG's chunks hold a CRC each: a flipped bit of it, or of what it covers, is found.
TEST(Image, RefusesEveryFlippedBitOfAPng) {
  const Bytes whole = plain_png(4, 4, {9, 8, 7});
  const Bytes pixels = decode_image(whole, "x").pixels;
  const size_t last_chunk = whole.size() - 12;
  for (size_t bit = 0; bit < last_chunk * 8; ++bit) {
    Bytes damaged = whole;
    damaged[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    EXPECT_NE(decoding_refusal(damaged), "") << bit;
  }
  for (size_t bit = last_chunk * 8; bit < whole.size() * 8; ++bit) {  // nothing lies behind the pixels
    Bytes damaged = whole;
    damaged[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    EXPECT_EQ(decode_image(damaged, "x").pixels, pixels) << bit;
  }
}

TEST(Image, RefusesApplesFormOfPng) {
  Bytes chunk;
  append_big_endian(chunk, 4);
  append(chunk, bytes_of_text("CgBI"));
  append(chunk, Bytes{0x50, 0x00, 0x20, 0x02, 0x2B, 0xD5, 0xB3, 0x7F});
  EXPECT_THAT(decoding_refusal(with_inserted(plain_png(4, 4, {9, 8, 7}), 8, chunk)), HasSubstr("CgBI"));
}

TEST(Image, RefusesWhatIsNoImageByName) {
  EXPECT_THAT(decoding_refusal({}), HasSubstr("cat.png"));
  EXPECT_THAT(decoding_refusal(bytes_of_text("GIF89a, perhaps")), HasSubstr("no JPEG, PNG or BMP"));
  EXPECT_THAT(decoding_refusal(Bytes{0xFF, 0xFF, 0xD8, 0xFF}), HasSubstr("no JPEG"));
}

/// A PNG without its empty last chunk and a BMP without its padding lack no pixel: Pillow reads
/// them, too.
TEST(Image, RefusesEveryTruncation) {
  constexpr size_t png_end = 12;
  for (const auto& [whole, needed] : {std::pair{grey_jpeg(), grey_jpeg().size()},
                                      {jpeg(9, 17, {}), jpeg(9, 17, {}).size()},
                                      {jpeg(9, 17, {.progressive = true}), jpeg(9, 17, {.progressive = true}).size()},
                                      {plain_png(4, 4, {9, 8, 7}), plain_png(4, 4, {9, 8, 7}).size() - png_end},
                                      {bmp_24(), bmp_24().size() - 3}}) {
    EXPECT_EQ(decoding_refusal(whole), "");
    for (size_t length = 0; length < whole.size(); ++length)
      EXPECT_EQ(decoding_refusal({whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length)}) != "",
                length < needed)
          << length << " of " << whole.size();
  }
}

/// The picture that a JPEG's header holds as a thumbnail has an end marker, too.
TEST(Image, TheEndMarkerOfAThumbnailIsNotTheEnd) {
  Bytes file = grey_jpeg();
  const Bytes segment = {0xFF, 0xE1, 0x00, 0x06, 0xFF, 0xD8, 0xFF, 0xD9};
  file.insert(file.begin() + 2, segment.begin(), segment.end());
  EXPECT_EQ(decoding_refusal(file), "");
  file.pop_back();
  file.pop_back();
  EXPECT_THAT(decoding_refusal(file), HasSubstr("ends early"));
}

TEST(Image, RefusesEnormousPicturesBeforeDecodingThem) {
  const Bytes file = png_of_stream(16384, 16384, zeros_compressed(1));
  EXPECT_THAT(decoding_refusal(file), HasSubstr("16384 x 16384"));
  EXPECT_THAT(decoding_refusal(Bytes(max_image_file_bytes + 1)), HasSubstr("bytes"));
}

/// A few bytes must not claim much memory: by the size of the picture, by the length of a chunk
/// (the decoder would allocate it at once), or by what compressed data grows to.
TEST(Image, TakesNoMoreMemoryThanAFileCanBeWorth) {
  Bytes file = png_of_stream(8000, 8000, zeros_compressed(1));  // a larger file may have as many
  EXPECT_THAT(decoding_refusal(file), HasSubstr("more than its"));

  file = plain_png(4, 4, {9, 8, 7});
  constexpr size_t data_chunk = 8 + 25;
  file[data_chunk] = 0x3F;  // a gigabyte
  EXPECT_THAT(decoding_refusal(file), HasSubstr("ends early"));

  // 64 MiB of zeros in place of a 4 x 4 picture's own pixels: the surplus is never stored.
  file = png_of_stream(4, 4, zeros_compressed(64 << 20));
  EXPECT_LT(file.size(), 500'000U);
  EXPECT_EQ(decode_image(file, "x").pixels, Bytes(4 * 4 * 3));
}

/// Every scan is a walk over the whole picture.
TEST(Image, RefusesJpegsOfCountlessScans) {
  const Bytes whole = jpeg(8, 8, {.progressive = true});
  const size_t at = first(whole, {0xFF, 0xDA});
  const size_t end = at + 2 + first(Bytes(whole.begin() + static_cast<ptrdiff_t>(at) + 2, whole.end()), {0xFF, 0xDA});
  const Bytes scan(whole.begin() + static_cast<ptrdiff_t>(at), whole.begin() + static_cast<ptrdiff_t>(end));
  Bytes more;
  for (int i = 0; i < 300; ++i) append(more, scan);
  EXPECT_THAT(decoding_refusal(with_inserted(whole, at, more)), HasSubstr("more than 200 scans"));
}

TEST(Image, KindsByName) {
  for (const char* name : {"a.jpg", "a.JPEG", "dir.x/b.Png", ".png", "a.bmp"})
    EXPECT_EQ(picture_kind(name), PictureKind::readable) << name;
  for (const char* name : {"a.webp", "a.GIF", "a.heic"}) EXPECT_EQ(picture_kind(name), PictureKind::unreadable) << name;
  for (const char* name : {"", "a", "jpg", "a.jpg.txt", "a.jpg~"}) EXPECT_EQ(picture_kind(name), PictureKind::none);
}

/// 16 counts of 255 are 4080 symbols, of which a decoder has room for 256.
TEST(Image, RefusesOverlongHuffmanTables) {
  Bytes file = grey_jpeg();
  const size_t table = first(file, {0xFF, 0xC4});
  ASSERT_LT(table, file.size());
  std::fill_n(file.begin() + static_cast<ptrdiff_t>(table) + 5, 16, uint8_t{255});
  EXPECT_THAT(decoding_refusal(file), HasSubstr("Huffman table"));
}

/// Damaged files give an error or a picture, nothing worse: sanitizers watch this test.
TEST(Image, SurvivesDamage) {
  Random random(3);
  for (const Bytes& whole : {grey_jpeg(), jpeg(9, 17, {true}), plain_png(4, 4, {9, 8, 7}), bmp_24()}) {
    for (int i = 0; i < 2000; ++i) {
      Bytes damaged = whole;
      for (int change = 0; change < 3; ++change)
        damaged[random.below(damaged.size())] = static_cast<uint8_t>(random.bits());
      decoding_refusal(damaged);
    }
  }
}

/// Inputs that were once read wrongly or refused wrongly. Their README has the right
/// values.
class SharedCases : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::is_directory(folder_)) GTEST_SKIP() << "there is no " << folder_;
  }
  Bytes file(const std::string& name) const { return read_bytes(folder_ / name); }

  const std::filesystem::path folder_ = std::filesystem::path(NIBBLENET_TESTS) / "../../shared/cases";
};

TEST_F(SharedCases, StrayBytesChangeNoPixel) {
  const Bytes base = decode_image(file("base.jpg"), "base.jpg").pixels;
  for (const char* name : {"extra_bytes_before_rst.jpg", "ff00_between_segments.jpg"})
    EXPECT_EQ(decode_image(file(name), name).pixels, base) << name;
}

TEST_F(SharedCases, CmykWithoutAdobesMarkerIsCmyk) {
  const RgbImage base = decode_image(file("base.jpg"), "base.jpg");
  const RgbImage cmyk = decode_image(file("cmyk_no_adobe.jpg"), "cmyk_no_adobe.jpg");
  ASSERT_EQ(cmyk.pixels.size(), base.pixels.size());
  double sum = 0;
  for (size_t i = 0; i < base.pixels.size(); ++i) sum += std::abs(int{base.pixels[i]} - int{cmyk.pixels[i]});
  EXPECT_LT(sum / static_cast<double>(base.pixels.size()), 8);  // both went through a JPEG's rounding
}

TEST_F(SharedCases, ApplesFormOfPngIsRefused) {
  EXPECT_EQ(decoding_refusal(file("cgbi_plain.png")), "");
  EXPECT_THAT(decoding_refusal(file("cgbi_swapped.png")), HasSubstr("CgBI"));
}

TEST_F(SharedCases, ColoursThatAPaletteLacksAreBlackEveryTime) {
  const Bytes once = decode_image(file("short_palette.png"), "short_palette.png").pixels;
  decode_image(file("full_palette.png"), "full_palette.png");
  EXPECT_EQ(decode_image(file("short_palette.png"), "short_palette.png").pixels, once);
  size_t black = 0;
  for (size_t i = 0; i < once.size(); i += 3) black += once[i] == 0 && once[i + 1] == 0 && once[i + 2] == 0 ? 1 : 0;
  EXPECT_GT(black, once.size() / 3 / 10);
}

/// Several hundred pictures, whole and broken, as Pillow reads them: pixels agree to one step, or
/// both refuse. Needs a Python with Pillow: NIBBLENET_PILLOW, else build/peers/bin/python, else
/// python3.
TEST(ImagePillow, AgreesInPixelsOrInRefusing) {
  const std::filesystem::path tests = NIBBLENET_TESTS;
  const char* given = std::getenv("NIBBLENET_PILLOW");
  const std::string built = (tests / "../build/peers/bin/python").string();
  const std::string python = given != nullptr ? given : std::filesystem::exists(built) ? built : "python3";
  if (std::system(fmt::format("'{}' -c 'import PIL' 2>/dev/null", python).c_str()) != 0)
    GTEST_SKIP() << python << " has no Pillow: see tests/peers/pillow_pictures.py";
  const TemporaryFolder folder;
  ASSERT_EQ(
      std::system(fmt::format("'{}' '{}' '{}' '{}' >/dev/null", python, (tests / "peers/pillow_pictures.py").string(),
                              folder.path().string(), (tests / "../../shared/cases").string())
                      .c_str()),
      0);
  std::ifstream list(folder.path() / "list.txt");
  int pictures = 0;
  for (std::string name, verdict; list >> name >> verdict; ++pictures) {
    const Bytes file = read_bytes(folder.path() / name);
    if (verdict == "refused") {
      EXPECT_NE(decoding_refusal(file), "") << name;
      continue;
    }
    RgbImage expected;
    list >> expected.width >> expected.height;
    expected.pixels = read_bytes(folder.path() / (name + ".rgb"));
    ASSERT_EQ(decoding_refusal(file), "") << name;
    const RgbImage image = decode_image(file, name);
    ASSERT_EQ(std::pair(image.width, image.height), std::pair(expected.width, expected.height)) << name;
    ASSERT_EQ(image.pixels.size(), expected.pixels.size()) << name;
    int largest = 0;
    for (size_t i = 0; i < image.pixels.size(); ++i)
      largest = std::max(largest, std::abs(int{image.pixels[i]} - int{expected.pixels[i]}));
    EXPECT_LE(largest, 1) << name;
  }
  EXPECT_GT(pictures, 500);
}

}  // namespace
}  // namespace nibblenet
