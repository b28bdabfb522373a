#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/core/error.h"
#include "engine/io/image_decoders.h"

#define STBI_ASSERT(condition) ((void)0)  // a file can violate these: a wrong pixel at worst
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

namespace nibblenet {
namespace {

/// The fields of a header that decode_bmp() needs. Offsets are bytes from the file's beginning.
struct BmpHeader {
  uint32_t pixels_at = 0;
  uint32_t palette_at = 0;
  uint32_t colours = 0;  ///< of the palette, as announced
  int bits = 0;          ///< a pixel
  int32_t height = 0;    ///< negative: the top row comes first
};

/// A little-endian number; 0 beyond the end.
template <class T>
T number_at(std::span<const uint8_t> file, size_t at) {
  T value = 0;
  if (at + sizeof value <= file.size()) std::memcpy(&value, file.data() + at, sizeof value);
  return value;
}

constexpr uint32_t file_header = 14, oldest_header = 12;  // bytes

BmpHeader parse_header(std::span<const uint8_t> file) {
  const auto header_bytes = number_at<uint32_t>(file, file_header);
  BmpHeader header;
  header.pixels_at = number_at<uint32_t>(file, 10);
  header.palette_at = file_header + std::min<uint32_t>(header_bytes, 1024);
  const bool oldest = header_bytes == oldest_header;
  header.height = oldest ? number_at<uint16_t>(file, 20) : number_at<int32_t>(file, 22);
  header.bits = number_at<uint16_t>(file, oldest ? 24 : 28);
  header.colours = oldest ? 0 : number_at<uint32_t>(file, 46);
  return header;
}

/// The file with its palette extended by black to every value that a pixel can have: stb_image
/// would read missing colours from uninitialised memory. The oldest header, behind which stb_image
/// counts four colours too few, becomes the one of 40 bytes.
std::vector<uint8_t> with_whole_palette(std::span<const uint8_t> file, const BmpHeader& header) {
  const bool oldest = header.palette_at == file_header + oldest_header;
  const size_t colour_bytes = oldest ? 3 : 4;
  const size_t most = size_t{1} << header.bits;
  const size_t there = (header.pixels_at - header.palette_at) / colour_bytes;
  const size_t kept = std::min({there, most, header.colours == 0 ? most : header.colours});
  std::vector<uint8_t> whole(file.begin(), file.begin() + header.palette_at);
  const auto put = [&whole](size_t at, auto value) { std::memcpy(whole.data() + at, &value, sizeof value); };
  if (oldest) {
    whole.resize(file_header + 40);
    put(14, uint32_t{40});
    put(18, uint32_t{number_at<uint16_t>(file, 18)});  // width
    put(22, header.height);
    put(26, number_at<uint32_t>(file, 22));  // planes, bits
  }
  const size_t palette_at = whole.size();
  whole.resize(palette_at + 4 * most);
  for (size_t i = 0; i < kept; ++i)
    std::memcpy(whole.data() + palette_at + 4 * i, file.data() + header.palette_at + i * colour_bytes, 3);
  put(10, static_cast<uint32_t>(whole.size()));
  whole.insert(whole.end(), file.begin() + header.pixels_at, file.end());
  return whole;
}

/// A file in memory for stb_image, which notices a read past its end.
struct Source {
  std::span<const uint8_t> rest;
  bool ended_early = false;

  static int read(void* user, char* to, int bytes) {
    Source& source = *static_cast<Source*>(user);
    if (source.rest.empty()) source.ended_early = true;
    const size_t got = std::min(source.rest.size(), static_cast<size_t>(bytes));
    std::memcpy(to, source.rest.data(), got);
    source.rest = source.rest.subspan(got);
    return static_cast<int>(got);
  }
  static void skip(void* user, int bytes) {
    Source& source = *static_cast<Source*>(user);
    source.rest = source.rest.subspan(std::min(source.rest.size(), static_cast<size_t>(std::max(bytes, 0))));
  }
  static int ended(void* user) { return static_cast<Source*>(user)->rest.empty() ? 1 : 0; }
  static constexpr stbi_io_callbacks callbacks = {read, skip, ended};
};

}  // namespace

RgbImage decode_bmp(std::span<const uint8_t> file, std::string_view name) {
  const BmpHeader header = parse_header(file);
  const uint32_t needed = header.bits <= 8 ? 4 : 0;  // some palette
  if (header.pixels_at < header.palette_at + needed || header.pixels_at > file.size() || header.height == INT32_MIN)
    fail<FormatError>("{} is not a readable BMP: damaged header", name);
  std::vector<uint8_t> whole;
  if (header.bits <= 8) {
    whole = with_whole_palette(file, header);
    file = whole;
  }
  RgbImage image;
  int channels = 0;
  Source source{file};
  if (stbi_info_from_callbacks(&Source::callbacks, &source, &image.width, &image.height, &channels) == 0)
    fail<FormatError>("{} is not a readable BMP: {}", name, stbi_failure_reason());
  image.height = std::abs(header.height);
  constexpr int64_t most_per_byte = 8;  // a bit a pixel, not compressed
  expect_image_size(image.width, image.height, file.size(), most_per_byte, name);

  source = {file};
  const std::unique_ptr<uint8_t, void (*)(void*)> pixels(
      stbi_load_from_callbacks(&Source::callbacks, &source, &image.width, &image.height, &channels, STBI_rgb),
      stbi_image_free);
  if (pixels == nullptr) fail<FormatError>("{} is not a readable BMP: {}", name, stbi_failure_reason());
  if (source.ended_early) fail<FormatError>("{} is not a readable BMP: it ends early", name);
  image.pixels.assign(pixels.get(),
                      pixels.get() + static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3);
  return image;
}

}  // namespace nibblenet
