#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// Appends fields of 0 to 32 bits to bytes, the lowest bit first.
class BitWriter {
 public:
  explicit BitWriter(std::vector<uint8_t>& bytes) : bytes_(bytes) {}
  /// Appends the lowest `bits` bits of a value.
  void put(uint32_t value, int bits) {
    for (int i = 0; i < bits; ++i, ++used_) {
      if (used_ % 8 == 0) bytes_.push_back(0);
      bytes_.back() |= static_cast<uint8_t>((value >> i & 1) << used_ % 8);
    }
  }
  /// Appends the Elias gamma code of value + 1: n zeros, a 1, then the n bits below the leading 1.
  void put_gamma(uint32_t value) {
    const int more = std::bit_width(value + 1) - 1;
    put(0, more);
    put(1, 1);
    put(value + 1, more);
  }

 private:
  std::vector<uint8_t>& bytes_;
  int64_t used_ = 0;
};

/// Reads a BitWriter's bytes. It never reads outside them, whatever they hold.
class BitReader {
 public:
  explicit BitReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  bool ended() const { return ended_; }  ///< whether a read went beyond the end; it gives zeros
  uint32_t take(int bits) {
    uint32_t value = 0;
    for (int i = 0; i < bits; ++i, ++used_) {
      const size_t at = used_ / 8;
      if (at >= bytes_.size()) {
        ended_ = true;
        return 0;
      }
      value |= static_cast<uint32_t>(bytes_[at] >> used_ % 8 & 1) << i;
    }
    return value;
  }
  /// A value up to 2^most_bits. Returns UINT32_MAX for a longer or truncated code.
  uint32_t take_gamma(int most_bits) {
    int more = 0;
    while (take(1) == 0) {
      if (ended_ || ++more > most_bits) return UINT32_MAX;
    }
    return ((uint32_t{1} << more) | take(more)) - 1;
  }
  /// Bytes read. Returns false if unused bits of the last one are not zero.
  bool finish(int64_t& bytes) {
    const bool clean = used_ % 8 == 0 || take(static_cast<int>(8 - used_ % 8)) == 0;
    bytes = static_cast<int64_t>(used_ / 8);
    return clean;
  }

 private:
  std::span<const uint8_t> bytes_;
  size_t used_ = 0;
  bool ended_ = false;
};

}  // namespace nibblenet
