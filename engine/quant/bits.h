#pragma once

#include <cstdint>

namespace nibblenet {

/// Dense little-endian bit fields: field i of a channel lies in bits [i*n, i*n+n) of its bytes.
///
///   n = 3:   byte 0            byte 1            byte 2
///           [2 1 1 1 0 0 0]…   bits of field 0 are the lowest three of byte 0
///
/// Every channel starts on a 16-byte boundary; the bytes between are zero.
inline constexpr int64_t channel_alignment = 16;

/// Widest field: with a shift of up to 7 bits it still fits a 32-bit word.
inline constexpr int max_field_bits = 25;

/// Bytes of `count` fields of `bits` bits, without padding.
constexpr int64_t packed_bytes(int64_t count, int bits) { return (count * bits + 7) / 8; }

/// Bytes from one channel to the next.
constexpr int64_t channel_stride(int64_t count, int bits) {
  return (packed_bytes(count, bits) + channel_alignment - 1) / channel_alignment * channel_alignment;
}

/// Reads field `index`; bits <= 25. Touches only the bytes the field lies in.
constexpr uint32_t read_field(const uint8_t* channel, int64_t index, int bits) {
  const int64_t first = index * bits;
  const int shift = static_cast<int>(first & 7);
  const uint8_t* bytes = channel + (first >> 3);
  uint32_t word = 0;
  for (int i = 0; i * 8 < shift + bits; ++i) word |= static_cast<uint32_t>(bytes[i]) << (8 * i);
  return (word >> shift) & ((1U << bits) - 1U);
}

/// Writes the fields of one channel in order, and each byte once; bits <= 25.
class FieldWriter {
 public:
  explicit FieldWriter(uint8_t* channel) : next_(channel) {}
  /// Appends a field.
  void put(uint32_t value, int bits) {
    pending_ |= static_cast<uint64_t>(value) << pending_bits_;
    for (pending_bits_ += bits; pending_bits_ >= 8; pending_bits_ -= 8, pending_ >>= 8)
      *next_++ = static_cast<uint8_t>(pending_);
  }
  /// Writes the last, partly filled byte.
  void finish() {
    if (pending_bits_ > 0) *next_++ = static_cast<uint8_t>(pending_);
    pending_ = 0;
    pending_bits_ = 0;
  }

 private:
  uint8_t* next_;
  uint64_t pending_ = 0;
  int pending_bits_ = 0;
};

}  // namespace nibblenet
