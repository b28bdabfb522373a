// Feeds arbitrary bytes to the decoders of pictures. Driven like safetensors_fuzz.cpp.

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/core/error.h"
#include "engine/io/image.h"
#include "tests/fuzz/fuzz_file.h"

namespace {

using namespace nibblenet;
using fuzz::require;

void decode(std::span<const uint8_t> file) {
  try {
    const RgbImage image = decode_image(file, "input");
    const int64_t pixels = int64_t{image.width} * image.height;
    require(image.width > 0 && image.height > 0);
    require(pixels <= max_image_pixels && pixels <= max_pixels_per_file_byte * static_cast<int64_t>(file.size()));
    require(static_cast<int64_t>(image.pixels.size()) == 3 * pixels);
    require(decode_image(file, "again").pixels == image.pixels);  // a pixel that nobody wrote would differ
  } catch (const FormatError&) {                                  // the only way in which an input may be refused
  }
}

/// Gives every chunk of a PNG its right CRC. A wrong one would be refused before the decoder looks
/// at anything else.
std::vector<uint8_t> with_crcs(std::span<const uint8_t> input) {
  constexpr size_t signature = 8, around_data = 12;
  std::vector<uint8_t> png(input.begin(), input.end());
  for (size_t at = signature; at + around_data <= png.size();) {
    const size_t length = size_t{png[at]} << 24 | png[at + 1] << 16 | png[at + 2] << 8 | png[at + 3];
    if (length > png.size() - at - around_data) break;
    const auto crc = static_cast<uint32_t>(crc32(0, png.data() + at + 4, static_cast<uInt>(length + 4)));
    for (size_t i = 0; i < 4; ++i) png[at + 8 + length + i] = static_cast<uint8_t>(crc >> (24 - 8 * i));
    at += around_data + length;
  }
  return png;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  decode({data, size});
  if (size > 1 && data[1] == 'P') decode(with_crcs({data, size}));
  return 0;
}
