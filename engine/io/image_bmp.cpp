#include <algorithm>
#include <array>
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

constexpr size_t file_header = 14, oldest_header = 12, plain_header = 40;  // bytes
constexpr size_t most_colours = 65536;
constexpr std::array<uint32_t, 7> known_headers = {oldest_header, plain_header, 52, 56, 64, 108, 124};

enum Compression : uint32_t { none, rle8, rle4, bit_fields };

using Masks = std::array<uint32_t, 4>;  ///< the bits of red, green, blue and alpha in a pixel

struct Layout {
  int bits;
  Masks masks;
};
/// Bit fields that are read: Pillow's.
constexpr Layout layouts[] = {
    {16, {0x7C00, 0x3E0, 0x1F}},
    {16, {0xF800, 0x7E0, 0x1F}},
    {24, {0xFF0000, 0xFF00, 0xFF}},
    {32, {}},
    {32, {0xFF0000, 0xFF00, 0xFF}},
    {32, {0xFF0000, 0xFF00, 0xFF, 0xFF000000}},
    {32, {0xFF, 0xFF00, 0xFF0000, 0xFF000000}},
    {32, {0xFF000000, 0xFF0000, 0xFF00}},
    {32, {0xFF000000, 0xFF0000, 0xFF00, 0xFF}},
    {32, {0xFF000000, 0xFF00, 0xFF}},
    {32, {0xFF000000, 0xFF00, 0xFF, 0xFF0000}},
};

/// The fields of a header. Offsets are bytes from the file's beginning.
struct BmpHeader {
  size_t palette_at = 0;
  size_t pixels_at = 0;
  size_t colours = 0;  ///< of the palette
  int32_t width = 0;
  int32_t height = 0;  ///< negative: the top row comes first
  int bits = 0;        ///< a pixel
  uint32_t compression = none;
  Masks masks{};
  bool oldest = false;

  size_t colour_bytes() const { return oldest ? 3 : 4; }
  size_t rows() const { return static_cast<size_t>(std::abs(height)); }
};

/// A little-endian number; 0 beyond the end.
template <class T>
T number_at(std::span<const uint8_t> file, size_t at) {
  T value = 0;
  if (at + sizeof value <= file.size()) std::memcpy(&value, file.data() + at, sizeof value);
  return value;
}

BmpHeader parse_header(std::span<const uint8_t> file, std::string_view name) {
  const auto refuse = [&](const std::string& why) { fail<FormatError>("{} is not a readable BMP: {}", name, why); };
  const auto header_bytes = number_at<uint32_t>(file, file_header);
  if (std::ranges::find(known_headers, header_bytes) == known_headers.end())
    refuse(fmt::format("its header of {} bytes is of no kind that is read", header_bytes));
  BmpHeader header{.palette_at = file_header + header_bytes, .oldest = header_bytes == oldest_header};
  header.pixels_at = number_at<uint32_t>(file, 10);
  header.width = header.oldest ? number_at<uint16_t>(file, 18) : number_at<int32_t>(file, 18);
  header.height = header.oldest ? number_at<uint16_t>(file, 20) : number_at<int32_t>(file, 22);
  header.bits = number_at<uint16_t>(file, header.oldest ? 24 : 28);
  if (!header.oldest) {
    header.compression = number_at<uint32_t>(file, 30);
    header.colours = number_at<uint32_t>(file, 46);
  }
  if (header.compression == bit_fields) {
    // The header of 40 bytes is followed by three masks; later ones hold them.
    const size_t masks = header_bytes < 56 ? 3 : 4;
    for (size_t i = 0; i < masks; ++i)
      header.masks[i] = number_at<uint32_t>(file, file_header + plain_header + sizeof(uint32_t) * i);
    if (header_bytes == plain_header) header.palette_at += masks * sizeof(uint32_t);
  }
  if (header.bits <= 8) {
    if (header.colours == 0) header.colours = size_t{1} << header.bits;
    // Some writers let the palette's place stand for that of the pixels.
    if (header.pixels_at == header.palette_at) header.pixels_at = 0;
  } else {
    header.colours = 0;
  }
  if (header.pixels_at == 0) header.pixels_at = header.palette_at + header.colours * header.colour_bytes();
  const size_t some_palette = header.colours == 0 ? 0 : header.colour_bytes();
  if (header.pixels_at < header.palette_at + some_palette || header.pixels_at > file.size() ||
      header.colours > most_colours || header.height == INT32_MIN)
    refuse("damaged header");

  const bool fits = header.compression == rle8   ? header.bits == 8
                    : header.compression == rle4 ? header.bits == 4
                                                 : header.compression <= bit_fields;
  if (!fits) refuse(fmt::format("compression {} of {} bits a pixel is not read", header.compression, header.bits));
  if (header.compression != bit_fields) return header;
  const size_t compared = header.bits == 32 ? 4 : 3;  // others have no alpha
  const auto same = [&](const Layout& layout) {
    return layout.bits == header.bits &&
           std::equal(layout.masks.begin(), layout.masks.begin() + compared, header.masks.begin());
  };
  if (std::ranges::none_of(layouts, same))
    refuse(fmt::format("bit fields {:x}, {:x}, {:x}, {:x} of {} bits a pixel are not read; save it with 24 bits",
                       header.masks[0], header.masks[1], header.masks[2], header.masks[3], header.bits));
  return header;
}

/// The colours of run-length coded pixels in the file's order of rows, a byte each; fewer than
/// `width` x `height` when the runs end early. As in Pillow, a run beyond its row is cut, and
/// absolute pixels go on in the next row.
std::vector<uint8_t> decode_runs(std::span<const uint8_t> runs, int bits, size_t width, size_t height) {
  constexpr uint8_t end_of_row = 0, end_of_picture = 1, jump = 2;
  const auto colour = [&](size_t at, size_t i) {
    if (bits == 8) return runs[at + i];
    return static_cast<uint8_t>(i % 2 == 0 ? runs[at + i / 2] >> 4 : runs[at + i / 2] & 15);
  };
  const size_t all = width * height;
  std::vector<uint8_t> colours;
  colours.reserve(all);
  const auto skip = [&](size_t count) { colours.resize(colours.size() + std::min(count, all - colours.size())); };
  size_t x = 0;
  for (size_t at = 0; colours.size() < all && at + 2 <= runs.size();) {
    const size_t count = runs[at], escape = runs[at + 1];
    at += 2;
    if (count > 0) {
      const size_t fits = std::min({count, width - std::min(x, width), all - colours.size()});
      for (size_t i = 0; i < fits; ++i) colours.push_back(colour(at - 1, bits == 8 ? 0 : i % 2));
      x += fits;
    } else if (escape == end_of_row) {
      skip((width - colours.size() % width) % width);
      x = 0;
    } else if (escape == end_of_picture) {
      break;
    } else if (escape == jump) {
      if (at + 2 > runs.size()) break;
      skip(runs[at] + runs[at + 1] * width);
      at += 2;
      x = colours.size() % width;
    } else {
      const size_t pixels = std::min(escape, all - colours.size());
      const size_t bytes = bits == 8 ? pixels : (pixels + 1) / 2;
      if (bytes > runs.size() - at) break;
      for (size_t i = 0; i < pixels; ++i) colours.push_back(colour(at, i));
      x += escape;
      at += bytes + bytes % 2;
    }
  }
  return colours;
}

/// The picture in the form that stb_image reads: a header of 40 bytes, no runs, and a palette that
/// black extends to every value of a pixel. stb_image would read missing colours from uninitialised
/// memory, and it takes masks inside a header of 56 bytes for those behind it.
std::vector<uint8_t> plain_bmp(std::span<const uint8_t> file, const BmpHeader& header, std::string_view name) {
  const bool runs = header.compression == rle8 || header.compression == rle4;
  const bool masks = header.compression == bit_fields && header.bits != 24 && header.masks[0] != 0;
  const int bits = runs ? 8 : header.bits;
  std::vector<uint8_t> plain(file_header + plain_header);
  const auto put = [&plain](size_t at, auto value) { std::memcpy(plain.data() + at, &value, sizeof value); };
  plain[0] = 'B', plain[1] = 'M';
  put(14, static_cast<uint32_t>(plain_header));
  put(18, header.width);
  put(22, header.height);
  put(26, uint16_t{1});  // planes
  put(28, static_cast<uint16_t>(bits));
  put(30, uint32_t{masks ? bit_fields : none});
  if (masks) {
    plain.resize(plain.size() + 3 * sizeof(uint32_t));
    std::memcpy(plain.data() + file_header + plain_header, header.masks.data(), 3 * sizeof(uint32_t));
  }
  if (bits <= 8) {
    const size_t most = size_t{1} << bits, palette_at = plain.size();
    const size_t there = (header.pixels_at - header.palette_at) / header.colour_bytes();
    plain.resize(palette_at + 4 * most);
    for (size_t i = 0; i < std::min({there, most, header.colours}); ++i)
      std::memcpy(plain.data() + palette_at + 4 * i, file.data() + header.palette_at + i * header.colour_bytes(), 3);
  }
  put(10, static_cast<uint32_t>(plain.size()));
  const std::span<const uint8_t> pixels = file.subspan(header.pixels_at);
  if (!runs) {
    plain.insert(plain.end(), pixels.begin(), pixels.end());
    return plain;
  }
  const auto width = static_cast<size_t>(header.width);
  const std::vector<uint8_t> colours = decode_runs(pixels, header.bits, width, header.rows());
  if (colours.size() < width * header.rows()) fail<FormatError>("{} is not a readable BMP: it ends early", name);
  constexpr size_t row_unit = 4;
  for (size_t y = 0; y < header.rows(); ++y) {
    const auto row = colours.begin() + static_cast<ptrdiff_t>(y * width);
    plain.insert(plain.end(), row, row + static_cast<ptrdiff_t>(width));
    plain.resize(plain.size() + (row_unit - width % row_unit) % row_unit);
  }
  return plain;
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
  const BmpHeader header = parse_header(file, name);
  constexpr int64_t most_per_byte = 8;  // a bit a pixel
  expect_image_size(header.width, static_cast<int64_t>(header.rows()), file.size(),
                    header.compression == rle8 || header.compression == rle4 ? max_pixels_per_file_byte : most_per_byte,
                    name);
  const std::vector<uint8_t> plain = plain_bmp(file, header, name);
  Source source{plain};
  RgbImage image;
  int channels = 0;
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
