#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/quant/code_layout.h"

namespace nibblenet {

/// Most bytes that one stream, or all streams of one file, may decode to: what a small hostile file can make a reader
/// allocate. More is neither written nor read.
inline constexpr int64_t max_decoded_bytes = int64_t{1} << 30;

/// Entropy-codes packed codes with interleaved rANS (Duda 2013, arXiv 1311.2540, section 3) and a static model for each
/// class of output channels or, where that takes fewer bytes, of inputs: what the codes of an input's weights look like
/// tells how much it matters; docs/formats.md draws the stream. Symbols are runs of codes of up to 8 bits together, so
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

/// Bytes that a compressed file holds of a tensor: its codes and block ids compressed where that makes them smaller,
/// all else as it is.
int64_t rest_bytes(const PackedTensor& packed);

/// Order-0 entropy of a tensor's codes in bits a weight: what no code can go below that looks at one weight at a time
/// and at nothing else.
double code_entropy(const PackedTensor& packed);

}  // namespace nibblenet
