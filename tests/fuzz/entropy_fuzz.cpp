// Feeds arbitrary bytes to the decoder of compressed codes. The first three bytes choose what the
// file's shape and scheme would say (bits, channels, codes in a channel), the rest is the stream.

#include <cstdint>
#include <cstdlib>
#include <span>

#include "engine/core/error.h"
#include "engine/quant/entropy.h"

namespace {

/// Stops the fuzzer: the input that was being tried breaks a promise of the decoder.
void require(bool promise) {
  if (!promise) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibblenet;
  if (size < 3) return 0;
  const CodeLayout layout{.channels = data[1], .elements = data[2], .bits = data[0] % 10};  // 0 and 9 are refused
  try {
    const auto codes = decode_codes({data + 3, size - 3}, layout, "fuzz");
    require(static_cast<int64_t>(codes.size()) == layout.bytes());
    // Decoded codes are a valid tensor, padding included, so they can be encoded again.
    require(decode_codes(encode_codes(codes, layout), layout, "again") == codes);
  } catch (const FormatError&) {  // the only way in which an input may be refused
  }
  return 0;
}
