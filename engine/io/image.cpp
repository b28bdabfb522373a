#include "engine/io/image.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string>

#include "engine/core/error.h"

namespace {

/// The largest block that the decoder may ask for on this thread. It grows its output as the compressed data goes on,
/// whatever the picture's announced size: a few megabytes of zeros, compressed, would take gigabytes.
thread_local size_t largest_block = 0;

/// Zeros, because the decoder of JPEGs uses tables that a damaged file did not define.
void* allocate(size_t bytes) { return bytes <= largest_block ? std::calloc(bytes, 1) : nullptr; }
void* reallocate(void* block, size_t bytes) { return bytes <= largest_block ? std::realloc(block, bytes) : nullptr; }

}  // namespace

#define STBI_MALLOC allocate
#define STBI_REALLOC reallocate
#define STBI_FREE std::free
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
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

/// More than any encoder writes; each costs a walk over the whole picture, whatever its few bytes say.
constexpr int max_jpeg_scans = 200;

/// What a picture may need in one piece: 8 bytes a pixel (16 bits of red, green, blue and alpha) or a JPEG's blocks of
/// up to 32 x 32 pixels, doubled as buffers grow; and twice the file.
size_t block_limit(const RgbImage& image, size_t file_bytes) {
  constexpr size_t unit = 32, bytes_a_pixel = 16, slack = size_t{1} << 20;
  return (static_cast<size_t>(image.width) + unit) * (static_cast<size_t>(image.height) + unit) * bytes_a_pixel +
         2 * file_bytes + slack;
}

const char* failure_reason() {
  const char* reason = stbi_failure_reason();
  return reason != nullptr ? reason : "damaged";
}

/// Whether the tables of a DHT segment (ITU T.81, B.2.4.2) are sound: each is a byte, 16 counts, and as many symbols
/// as the counts sum to, at most 256.
bool huffman_tables_are_sound(std::span<const uint8_t> tables) {
  constexpr size_t counts_begin = 1, counts_end = 17, most_symbols = 256;
  while (!tables.empty()) {
    if (tables.size() < counts_end) return false;
    size_t symbols = 0;
    for (size_t i = counts_begin; i < counts_end; ++i) symbols += tables[i];
    if (symbols > most_symbols || tables.size() < counts_end + symbols) return false;
    tables = tables.subspan(counts_end + symbols);
  }
  return true;
}

/// What is wrong with the marker segments of a JPEG, nullptr when they are sound and lead to the end marker. Checked
/// before the decoder sees the file, for two reasons: it reads zeros behind the end of the data and would hand out a
/// picture with a grey lower part; and stb_image up to 2.27 writes past its tables for Huffman tables of more than 256
/// symbols. This walk meets every segment that the decoder would, which is stricter about what lies between them.
const char* jpeg_fault(std::span<const uint8_t> file) {
  constexpr uint8_t escape = 0xFF, start_of_image = 0xD8, end_of_image = 0xD9, huffman_tables = 0xC4;
  constexpr uint8_t start_of_scan = 0xDA;
  int scans = 0;
  if (file.size() < 2 || file[1] != start_of_image) return "no start marker";
  for (size_t at = 2; at + 1 < file.size();) {
    const uint8_t marker = file[at + 1];
    if (file[at] != escape || marker == escape) {
      ++at;
      continue;
    }
    at += 2;
    if (marker == end_of_image) return nullptr;
    // FF 00 and the restart markers D0…D7 belong to entropy-coded data. Every other marker opens a segment with a
    // length, which is skipped: it may hold a thumbnail with an end marker of its own.
    if (marker == 0 || (marker >= 0xD0 && marker <= 0xD7)) continue;
    if (at + 1 >= file.size()) break;
    const size_t length = (size_t{file[at]} << 8) | file[at + 1];  // includes itself
    if (length < 2) return "bad segment length";
    if (length > file.size() - at) break;
    if (marker == huffman_tables && !huffman_tables_are_sound(file.subspan(at + 2, length - 2)))
      return "bad Huffman table";
    if (marker == start_of_scan && ++scans > max_jpeg_scans) return "too many scans";
    at += length;
  }
  return "it ends early";
}

constexpr std::array<uint8_t, 8> png_signature = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

uint32_t read_big_endian(std::span<const uint8_t> file, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | file[at + i];
  return value;
}

/// What is wrong with the chunks of a PNG, nullptr when they lead to the last one. The decoder believes their lengths:
/// it takes memory for a gigabyte that 100 bytes announce.
const char* png_fault(std::span<const uint8_t> file) {
  constexpr size_t around_data = 12;  // length, type, checksum
  for (size_t at = png_signature.size(); file.size() - at >= around_data;) {
    const size_t length = read_big_endian(file, at);
    if (length > file.size() - at - around_data) break;
    const std::string_view type(reinterpret_cast<const char*>(file.data()) + at + 4, 4);
    if (type == "IEND") return nullptr;
    at += around_data + length;
  }
  return "it ends early";
}

/// Throws FormatError for sizes that are not read, or that so few bytes cannot be worth.
void expect_size(int64_t width, int64_t height, size_t file_bytes, std::string_view name) {
  if (width < 1 || height < 1 || width > max_image_pixels || width * height > max_image_pixels)
    fail<FormatError>("{} says it has {} x {} pixels; images of 1 to {} pixels are read", name, width, height,
                      max_image_pixels);
  if (width * height > max_pixels_per_file_byte * static_cast<int64_t>(file_bytes))
    fail<FormatError>("{} is damaged: it says it has {} x {} pixels, more than its {} bytes can hold", name, width,
                      height, file_bytes);
}

/// Throws FormatError for files whose structure is unsound.
void expect_sound(std::span<const uint8_t> file, std::string_view name) {
  if (!file.empty() && file[0] == 0xFF) {  // nothing else that is supported starts so
    if (const char* fault = jpeg_fault(file)) fail<FormatError>("{} is not a readable JPEG: {}", name, fault);
  } else if (file.size() >= png_signature.size() &&
             std::ranges::equal(file.first(png_signature.size()), png_signature)) {
    if (const char* fault = png_fault(file)) fail<FormatError>("{} is not a readable PNG: {}", name, fault);
    // The decoder says no more of large ones than that they are of no known type.
    constexpr size_t type_at = 12, width_at = 16, height_at = 20;
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    if (file.size() >= height_at + 4 && text.substr(type_at).starts_with("IHDR"))
      expect_size(read_big_endian(file, width_at), read_big_endian(file, height_at), file.size(), name);
  } else {
    fail<FormatError>("{} is not a readable JPEG or PNG", name);
  }
}

constexpr std::array<std::string_view, 3> readable = {".jpg", ".jpeg", ".png"};
constexpr std::array<std::string_view, 8> unreadable = {".bmp", ".gif",  ".heic", ".ppm",
                                                        ".tif", ".tiff", ".webp", ".avif"};

}  // namespace

PictureKind picture_kind(std::string_view file_name) {
  const size_t dot = file_name.rfind('.');
  std::string extension(dot == std::string_view::npos ? "" : file_name.substr(dot));
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (std::ranges::find(readable, extension) != readable.end()) return PictureKind::readable;
  return std::ranges::find(unreadable, extension) != unreadable.end() ? PictureKind::unreadable : PictureKind::none;
}

RgbImage decode_image(std::span<const uint8_t> file, std::string_view name) {
  if (file.size() > max_image_file_bytes)
    fail<FormatError>("{} has {} bytes; images of up to {} are read", name, file.size(), max_image_file_bytes);
  expect_sound(file, name);
  const auto size = static_cast<int>(file.size());
  RgbImage image;
  int channels = 0;
  largest_block = block_limit(image, file.size());
  if (stbi_info_from_memory(file.data(), size, &image.width, &image.height, &channels) == 0)
    fail<FormatError>("{} is not a readable JPEG or PNG: {}", name, failure_reason());
  expect_size(image.width, image.height, file.size(), name);

  largest_block = block_limit(image, file.size());
  int width = 0;
  int height = 0;
  const std::unique_ptr<uint8_t, void (*)(void*)> pixels(
      stbi_load_from_memory(file.data(), size, &width, &height, &channels, STBI_rgb), stbi_image_free);
  if (pixels == nullptr) fail<FormatError>("{} cannot be decoded: {}", name, failure_reason());
  if (width != image.width || height != image.height)
    fail<FormatError>("{} is damaged: {} x {} pixels announced, {} x {} decoded", name, image.width, image.height,
                      width, height);
  const size_t bytes = static_cast<size_t>(width) * static_cast<size_t>(height) * 3;
  image.pixels.assign(pixels.get(), pixels.get() + bytes);
  return image;
}

}  // namespace nibblenet
