#pragma once

#include <cstdint>
#include <vector>

namespace nibblenet {

/// Superblocks: packed n-bit codes in mma fragment order. A superblock is a 64 x 64 tile of codes
/// of exactly n x 512 bytes, without padding (Marlin's idea; not ggml's super-block). A warp reads
/// one in n loads of 16 bytes a lane. Each lane gets the weights of its own places in
/// mma.m16n8k16:
///
///   superblock  load 0: lane 0 (16 bytes), lane 1, … lane 31;  load 1: lane 0, …;  …;  load n - 1
///   lane        4 n words of 32 bits, in 4 chunks of n words; chunk c belongs to k-tile c
///   chunk       16 values j = 4 f + r: register r of the 16 x 16 fragment of rows [16 f, 16 f + 16)
///   value       two codes of neighbouring columns: the even one in the lower half words, the odd
///               one in the upper half words
///   half words  a chunk has n of 16 bits; value j takes bits [j n, j n + n). Where these cross
///               into the next half word, the code's upper bits end the first, and its lower bits
///               start the second
///
/// Columns may share a k-tile in any way that x shares. Lane 4 g + t takes columns
/// [16 t, 16 t + 16), four a chunk, so that its part of a row of x is 32 contiguous bytes.
/// Superblocks are stored along the columns, then along the rows.
class Superblocks {
 public:
  static constexpr int size = 64;  ///< rows and columns of one
  static constexpr int chunks = 4;
  static constexpr int values_per_chunk = 16;
  static constexpr int row_bytes = 512;  ///< of one load of a warp

  constexpr Superblocks() = default;
  constexpr Superblocks(int64_t rows, int64_t columns, int bits)
      : tile_rows_((rows + size - 1) / size), tile_columns_((columns + size - 1) / size), bits_(bits) {}

  constexpr int64_t tile_rows() const { return tile_rows_; }
  constexpr int64_t tile_columns() const { return tile_columns_; }
  constexpr int64_t bytes() const { return tile_rows_ * tile_columns_ * bytes_each(); }
  constexpr int64_t bytes_each() const { return int64_t{row_bytes} * bits_; }
  /// First byte of the superblock that holds (row, column).
  constexpr int64_t offset(int64_t row, int64_t column) const {
    return (row / size * tile_columns_ + column / size) * bytes_each();
  }

  /// Position of the two codes of columns `column` (even) and `column` + 1.
  struct Place {
    int lane;
    int chunk;
    int value;
  };
  /// Position of a weight in its superblock.
  static constexpr Place place(int row, int column) {
    row %= size;
    column %= size;
    const int register_of_fragment = column % 4 / 2 * 2 + row % 16 / 8;
    return {.lane = row % 8 * 4 + column / 16, .chunk = column % 16 / 4, .value = row / 16 * 4 + register_of_fragment};
  }
  /// Byte of word `word` of a lane's chunk inside a superblock.
  constexpr int byte_of_word(const Place& place, int word) const {
    const int flat = place.chunk * bits_ + word;
    return flat / 4 * row_bytes + place.lane * 16 + flat % 4 * 4;
  }

 private:
  int64_t tile_rows_ = 0;
  int64_t tile_columns_ = 0;
  int bits_ = 0;
};

/// Bit field of value j, n bits wide, in the half words of a chunk.
struct FieldPlace {
  int word;   ///< in which its first bit lies
  int shift;  ///< from the half word's lowest bit
  int rest;   ///< bits that lie in the next word; 0: none
};
/// Bit field of a value in a lane's words.
constexpr FieldPlace field_place(int value, int bits) {
  const int first = value * bits;
  const int beyond = first % 16 + bits - 16;
  return {.word = first / 16, .shift = first % 16, .rest = beyond > 0 ? beyond : 0};
}

/// The same 16 bits in both halves of a word.
constexpr uint32_t in_both_halves(uint32_t bits) { return bits * 0x10001U; }

/// Whether rows of `columns` codes take no more bytes as superblocks than in channel layout, where
/// each row is padded to 16 bytes.
bool superblocks_fit(int64_t rows, int64_t columns, int bits);

/// Codes [rows, channel_stride(columns, bits)] as superblocks; zeros outside the matrix.
std::vector<uint8_t> to_superblocks(const std::vector<uint8_t>& codes, int64_t rows, int64_t columns, int bits);
/// Inverse of to_superblocks.
std::vector<uint8_t> from_superblocks(const std::vector<uint8_t>& blocks, int64_t rows, int64_t columns, int bits);

}  // namespace nibblenet
