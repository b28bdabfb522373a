#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/quant/code_layout.h"

namespace nibblenet {

/// Limit on the decoded bytes of one stream, and of all streams of one file. It bounds what a small
/// hostile file can make a reader allocate. Writers keep to it too.
inline constexpr int64_t max_decoded_bytes = int64_t{1} << 30;

/// Entropy-codes packed codes with interleaved rANS (Duda 2013, arXiv 1311.2540, section 3). Each
/// class of output channels has a static model; classes of inputs are used if that takes fewer
/// bytes. docs/formats.md draws the stream. A symbol is a run of codes of up to 8 bits in all: it
/// uses the dependence between neighbours, and one byte is decoded at a time. Width, classes and
/// precision are those of the smallest stream, or of a faster one within 0.1 % of it.
/// Deterministic; uses all OpenMP threads. Bits beyond a channel's last code are taken as zero.
/// Throws ShapeError if `codes` is not layout.bytes() long, or for a width outside 1 to 8.
std::vector<uint8_t> encode_codes(std::span<const uint8_t> codes, const CodeLayout& layout);

/// Decodes the exact bytes that encode_codes got, in parallel over the stream's chunks. Any stream
/// is safe: sizes are checked before memory is allocated. The result has at most `limit` bytes, and
/// at most about 4,000 times the stream's. Throws FormatError starting with `name`.
std::vector<uint8_t> decode_codes(std::span<const uint8_t> stream, const CodeLayout& layout, std::string_view name,
                                  int64_t limit = max_decoded_bytes);

/// The stream if it is smaller than the codes and decodes to them, else nothing: then the codes are
/// stored uncompressed.
std::optional<std::vector<uint8_t>> compressed_if_smaller(std::span<const uint8_t> codes, const CodeLayout& layout);

/// Bytes of a tensor in a compressed file: codes and block ids compressed if that makes them
/// smaller, the rest uncompressed.
int64_t compressed_bytes(const PackedTensor& packed);

/// Order-0 entropy of a tensor's codes in bits a weight: the lower bound for a code that sees one
/// weight at a time. Of trellis strings, whose bits are all alike, it is their rate.
double code_entropy(const PackedTensor& packed);

}  // namespace nibblenet
