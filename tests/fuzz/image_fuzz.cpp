// Feeds arbitrary bytes to the decoder of pictures. Driven like safetensors_fuzz.cpp.

#include "engine/core/error.h"
#include "engine/io/image.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibblenet;
  using fuzz::require;
  try {
    const RgbImage image = decode_image({data, size}, "input");
    const int64_t pixels = int64_t{image.width} * image.height;
    require(image.width > 0 && image.height > 0);
    require(pixels <= max_image_pixels && pixels <= max_pixels_per_file_byte * static_cast<int64_t>(size));
    require(static_cast<int64_t>(image.pixels.size()) == 3 * pixels);
  } catch (const FormatError&) {  // the only way in which an input may be refused
  }
  return 0;
}
