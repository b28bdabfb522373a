#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
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
};

/// Most bytes that one stream, or all streams of one file, may decode to: what a small hostile file can make a reader
/// allocate. More is neither written nor read.
inline constexpr int64_t max_decoded_bytes = int64_t{1} << 30;

/// Entropy-codes packed codes with interleaved rANS (Duda 2013, arXiv 1311.2540, section 3) and a static model for each
/// class of output channels; docs/formats.md draws the stream. Symbols are runs of codes of up to 8 bits together, so
/// that what a code says of its neighbour is used and a byte is decoded at a time; width, classes and precision are
/// those that make the stream smallest (or within 0.1 % of it and faster). Deterministic; uses all OpenMP threads. Bits
/// beyond a channel's last code are taken for zero. Throws ShapeError when `codes` is not layout.bytes() long, or
/// for another width than 1 to 8.
std::vector<uint8_t> encode_codes(std::span<const uint8_t> codes, const CodeLayout& layout);

/// The exact bytes that encode_codes was given, in parallel over the stream's chunks. Any stream is safe to hand in:
/// sizes are checked before anything is allocated, what is decoded is at most `limit` and about 4,000 times the
/// stream's bytes. Throws FormatError starting with `name`.
std::vector<uint8_t> decode_codes(std::span<const uint8_t> stream, const CodeLayout& layout, std::string_view name,
                                  int64_t limit = max_decoded_bytes);

/// The stream when it is smaller than the codes and decodes to them, else nothing: they are better stored as they are.
std::optional<std::vector<uint8_t>> compressed_if_smaller(std::span<const uint8_t> codes, const CodeLayout& layout);

CodeLayout code_layout(const PackedTensor& packed);
CodeLayout block_id_layout(const PackedTensor& packed);

/// Bytes that a compressed file holds of a tensor: its codes and block ids compressed where that makes them smaller,
/// all else as it is.
int64_t rest_bytes(const PackedTensor& packed);

/// Order-0 entropy of a tensor's codes in bits a weight: what no code can go below that looks at one weight at a time
/// and at nothing else.
double code_entropy(const PackedTensor& packed);

}  // namespace nibblenet
