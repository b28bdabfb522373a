#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// The layout of a compressed tensor's codes: `channels` rows of `elements` codes of `bits` bits,
/// dense and little-endian, each row on a 16-byte boundary (bits.h). The stream does not contain
/// it; it follows from the file's scheme and shape.
struct CodeLayout {
  int64_t channels = 0;
  int64_t elements = 0;  ///< codes in a channel
  int bits = 0;          ///< 1…8

  int64_t stride() const;  ///< bytes from one channel to the next
  int64_t bytes() const { return channels * stride(); }
  CodeLayout transposed() const { return {elements, channels, bits}; }
};

/// The layouts of a tensor's codes and of its block ids. The strings of a trellis scheme are one
/// row of bytes.
CodeLayout code_layout(const PackedTensor& packed);
CodeLayout block_id_layout(const PackedTensor& packed);

/// Transposes codes: all channels of the first input, then of the next, in layout.transposed().
/// Drops the bits beyond a channel's last code. Runs in parallel.
std::vector<uint8_t> transposed(std::span<const uint8_t> codes, const CodeLayout& layout);

}  // namespace nibblenet
