#pragma once

#include <cstdint>

namespace nibblenet::testing {

/// Writes field `index` of a zero-initialised channel; bits <= 25.
inline void write_field(uint8_t* channel, int64_t index, int bits, uint32_t value) {
  const int64_t first = index * bits;
  const int shift = static_cast<int>(first & 7);
  uint8_t* bytes = channel + (first >> 3);
  const uint64_t word = static_cast<uint64_t>(value) << shift;
  for (int i = 0; i * 8 < shift + bits; ++i) bytes[i] |= static_cast<uint8_t>(word >> (8 * i));
}

}  // namespace nibblenet::testing
