#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
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

/// Largest file and picture that are read. They are checked before memory is allocated, since a
/// small file can claim to be an enormous picture.
inline constexpr size_t max_image_file_bytes = size_t{64} << 20;
inline constexpr int64_t max_image_pixels = 100'000'000;
/// Most pixels that one byte of a compressed file can stand for: deflate shrinks 1032 bytes to 1,
/// and a byte of a PNG holds up to eight pixels. A JPEG stays far below.
inline constexpr int64_t max_pixels_per_file_byte = 8 * 1032;

/// Whether a file's name is that of a picture, and of one that decode_image() reads.
enum class PictureKind : uint8_t { none, readable, unreadable };
/// The kind by the extension, in upper or lower case: .jpg, .jpeg, .png and .bmp are readable,
/// other pictures such as .webp are not.
PictureKind picture_kind(std::string_view file_name);

/// Decodes a JPEG, PNG or BMP, told by its content, to the pixels of Pillow's
/// `Image.open(f).convert("RGB")`:
///
/// | format | decoder       | against Pillow                                                |
/// |--------|---------------|---------------------------------------------------------------|
/// | JPEG   | libjpeg-turbo | equal: grey, colour and CMYK, baseline and progressive        |
/// | PNG    | libpng        | equal, but for 16-bit grey: the high byte, where Pillow clips |
/// | BMP    | stb_image     | to one step; other bit fields than Pillow's are refused       |
///
/// Transparency is dropped. Orientation tags are ignored, as in torchvision's image folders. Throws
/// FormatError naming `name` for other files, for pictures beyond the limits above (before memory
/// is allocated) and for damaged ones: data that ends before the last pixel, or a wrong CRC of a
/// PNG. Like Pillow, it reads JPEGs with stray bytes between segments, at restart markers or in
/// place of the end marker, and PNGs whose compressed stream lacks its checksum.
RgbImage decode_image(std::span<const uint8_t> file, std::string_view name);

/// decode_image() of a file. Throws IoError when it cannot be read, or is no regular file.
RgbImage read_image(const std::filesystem::path& path);

}  // namespace nibblenet
