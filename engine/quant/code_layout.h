#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// What a compressed tensor decodes to: `channels` rows of `elements` codes of `bits` bits, dense and little-endian,
/// each row on a 16-byte boundary (bits.h). The stream does not repeat it: a file says it by scheme and shape.
struct CodeLayout {
  int64_t channels = 0;
  int64_t elements = 0;  ///< codes in a channel
  int bits = 0;          ///< 1…8

  int64_t stride() const;  ///< bytes from one channel to the next
  int64_t bytes() const { return channels * stride(); }
  CodeLayout transposed() const { return {elements, channels, bits}; }
};

CodeLayout code_layout(const PackedTensor& packed);
CodeLayout block_id_layout(const PackedTensor& packed);

/// The same codes input by input: those of all channels for the first input, then for the next, in
/// layout.transposed(). Bits beyond a channel's last code are lost. In parallel.
std::vector<uint8_t> transposed(std::span<const uint8_t> codes, const CodeLayout& layout);

}  // namespace nibblenet
