#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/io/image.h"

/// Decoders of single picture formats: decode_image chooses between them.
namespace nibblenet {

/// Throws FormatError unless max_image_pixels and `most_per_byte` pixels for each byte of the file
/// allow the size.
void expect_image_size(int64_t width, int64_t height, size_t file_bytes, int64_t most_per_byte, std::string_view name);

/// Decodes by libjpeg-turbo. Throws FormatError naming `name`.
RgbImage decode_jpeg(std::span<const uint8_t> file, std::string_view name);
/// Decodes by libpng. Throws FormatError naming `name`.
RgbImage decode_png(std::span<const uint8_t> file, std::string_view name);
/// Decodes by stb_image. Throws FormatError naming `name`.
RgbImage decode_bmp(std::span<const uint8_t> file, std::string_view name);

/// Runs calls of a C library that reports an error by longjmp to `failed`. Returns whether `calls`
/// finished. Requires: nothing inside `calls` needs a destructor.
template <class Calls>
bool runs_without_longjmp(std::jmp_buf& failed, const Calls& calls) {
  if (setjmp(failed) != 0) return false;
  calls();
  return true;
}

}  // namespace nibblenet
