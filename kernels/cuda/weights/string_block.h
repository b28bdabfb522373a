#pragma once

#include <cstdint>
#include <vector>

#include "engine/core/error.h"
#include "engine/core/tensor.h"
#include "engine/quant/trellis.h"

namespace nibblenet {

/// String blocks: trellis strings in the order in which a warp decodes them. A block holds the
/// strings of 16 neighbouring columns (inputs, in device order) for one sequence of up to 256
/// output channels: exactly their bytes. With R = q / 4 bits a weight:
///
///   lane 4 g + t   channels [32 g, 32 g + 32) of columns [4 t, 4 t + 4), in q words of 32 bits
///   its words      for each of its columns q bytes. Word 4 i + c holds bytes [4 i, 4 i + 4) of
///                  column c. Of the q % 4 bytes that are left, two are a half of a word that two
///                  columns share, and one is a quarter of a word that all four share
///   in memory      the lanes' first four words, then their next four, …, then two, then one
///
/// A window that begins in a lane's channels ends in the first two bytes of lane 4 (g + 1) + t, or,
/// at the string's end, of lane t. A sequence of L channels has L / 8 lanes. Blocks are stored
/// along the columns, then along the sequences.
class StringBlocks {
 public:
  static constexpr int columns = 16;        ///< of a block
  static constexpr int lane_columns = 4;    ///< of these
  static constexpr int lane_channels = 32;  ///< of a sequence
  static constexpr int fragments = 16;      ///< of mma.m16n8k16, for the channels of a sequence

  constexpr StringBlocks() = default;
  /// Blocks of a matrix [channels, inputs]; inputs is a multiple of 16.
  constexpr explicit StringBlocks(const TrellisLayout& strings) : strings_(strings) {}

  constexpr int64_t sequences() const { return strings_.sequences(); }
  constexpr int64_t blocks() const { return strings_.inputs / columns; }  ///< of a sequence
  /// Lanes with channels of sequence s.
  constexpr int lanes(int64_t s) const { return static_cast<int>(strings_.length(s)) / (lane_channels / lane_columns); }
  constexpr int64_t bytes_each(int64_t s) const { return columns * strings_.string_bytes(s); }
  /// First byte of a block.
  constexpr int64_t offset(int64_t s, int64_t block) const { return strings_.offset(s, 0) + block * bytes_each(s); }

  /// Byte of a lane's word inside a block.
  static constexpr int byte_of_word(int word, int lane, int lanes, int quarters) {
    const int whole = quarters / 4, rest = word - 4 * whole;
    if (rest < 0) return (word / 4 * lanes + lane) * 16 + word % 4 * 4;
    const int behind = whole * lanes * 16;
    if (quarters % 4 == 1) return behind + lane * 4;
    return rest < 2 ? behind + lane * 8 + rest * 4 : behind + lanes * 8 + lane * 4;
  }
  /// Byte i of a lane's column inside its words.
  struct Place {
    int word;
    int byte;
  };
  /// The place of byte i.
  static constexpr Place place(int column, int i, int quarters) {
    const int whole = quarters / 4 * 4, rest = i - whole;
    if (rest < 0) return {i / 4 * 4 + column, i % 4};
    if (quarters % 4 >= 2 && rest < 2) return {whole + column / 2, column % 2 * 2 + rest};
    return {whole + rest, column};
  }
  /// Byte of a block that holds byte `i` of the string of column `column`.
  static constexpr int byte_of_string(int column, int i, int lanes, int quarters) {
    const Place at = place(column % lane_columns, i % quarters, quarters);
    return byte_of_word(at.word, i / quarters * 4 + column / lane_columns, lanes, quarters) + at.byte;
  }

 private:
  TrellisLayout strings_;
};

/// Whether strings can lie as blocks: whole blocks of columns.
constexpr bool suits_string_blocks(int64_t inputs) { return inputs > 0 && inputs % StringBlocks::columns == 0; }

/// Calls f.template operator()<quarters>() with the rate as a constant.
template <class F>
void with_quarters(int quarters, F f) {
  const auto is = [&]<int q>() {
    if (quarters == q) f.template operator()<q>();
    return quarters == q;
  };
  const bool found = is.template operator()<2>() || is.template operator()<3>() || is.template operator()<4>() ||
                     is.template operator()<5>() || is.template operator()<6>() || is.template operator()<8>() ||
                     is.template operator()<12>() || is.template operator()<16>();
  if (!found) fail<Error>("no product for trellis strings of {} quarters of a bit", quarters);
}

/// Strings as files have them, of a weight [K, C, taps], as blocks. Columns are in device order:
/// tap by tap, channel by channel in a tap. The bytes behind the last string stay.
std::vector<uint8_t> to_string_blocks(const std::vector<uint8_t>& strings, const Shape& shape, int quarters);
/// Inverse of to_string_blocks.
std::vector<uint8_t> from_string_blocks(const std::vector<uint8_t>& blocks, const Shape& shape, int quarters);

}  // namespace nibblenet
