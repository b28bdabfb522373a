#include "engine/io/image.h"

#include <memory>

#include "engine/core/error.h"

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
    at += length;
  }
  return "it ends early";
}

}  // namespace

RgbImage decode_image(std::span<const uint8_t> file, std::string_view name) {
  if (file.size() > max_image_file_bytes)
    fail<FormatError>("{} has {} bytes; images of up to {} are read", name, file.size(), max_image_file_bytes);
  if (!file.empty() && file[0] == 0xFF) {  // nothing else that is supported starts so
    if (const char* fault = jpeg_fault(file)) fail<FormatError>("{} is not a readable JPEG: {}", name, fault);
  }
  const auto size = static_cast<int>(file.size());
  RgbImage image;
  int channels = 0;
  if (stbi_info_from_memory(file.data(), size, &image.width, &image.height, &channels) == 0)
    fail<FormatError>("{} is not a readable JPEG or PNG: {}", name, failure_reason());
  if (image.width < 1 || image.height < 1 || int64_t{image.width} * image.height > max_image_pixels)
    fail<FormatError>("{} says it has {} x {} pixels; images of 1 to {} pixels are read", name, image.width,
                      image.height, max_image_pixels);

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
