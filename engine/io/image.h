#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace nibblenet {

/// A decoded picture: rows of RGB RGB …, top first, height x width x 3 bytes.
struct RgbImage {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> pixels;
};

/// What is refused before any memory is spent on it: a small file can claim to be an enormous picture.
inline constexpr size_t max_image_file_bytes = size_t{64} << 20;
inline constexpr int64_t max_image_pixels = 100'000'000;

/// Decodes a JPEG or PNG. Grey becomes RGB, transparency is dropped, 16 bits become 8; orientation tags are not
/// followed (as in torchvision's image folders). Throws FormatError naming `name` for anything else, for pictures
/// beyond the limits above and for damaged ones, a JPEG that ends early included.
RgbImage decode_image(std::span<const uint8_t> file, std::string_view name);

}  // namespace nibblenet
