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
  void put(uint32_t value, int bits) {
    for (int i = 0; i < bits; ++i, ++used_) {
      if (used_ % 8 == 0) bytes_.push_back(0);
      bytes_.back() |= static_cast<uint8_t>((value >> i & 1) << used_ % 8);
    }
  }
  /// Elias gamma of value + 1: as many zeros as bits follow the leading 1, the 1, the bits.
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

/// Reads what BitWriter wrote; whatever the bytes are, it stays within them.
class BitReader {
 public:
  explicit BitReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  bool ended() const { return ended_; }  ///< something was read beyond the end, as zeros
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
  /// At most 2^most_bits; UINT32_MAX for what is longer or cut off.
  uint32_t take_gamma(int most_bits) {
    int more = 0;
    while (take(1) == 0) {
      if (ended_ || ++more > most_bits) return UINT32_MAX;
    }
    return ((uint32_t{1} << more) | take(more)) - 1;
  }
  /// Bytes touched; false when the unused bits of the last one are not zero.
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
