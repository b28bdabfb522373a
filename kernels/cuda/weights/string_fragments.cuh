#pragma once

#include "kernels/cuda/weights/string_windows.cuh"
#include "kernels/cuda/weights/unpack.cuh"

// Unpacking of trellis strings to the fragments of superblocks (weights/superblock.h), for products
// of 64 x 64 weights. The values are whole numbers from -126 to 126, without the channels' scales.

namespace nibblenet {

/// Trellis strings of `n` quarters of a bit a weight, as codes of a product: unpacked, they are
/// superblocks of fp16 values.
template <int n>
struct StringCodes : HalfCodes {
  static constexpr int quarters = n;
};
template <class Codes>
inline constexpr bool are_strings = false;
template <int n>
inline constexpr bool are_strings<StringCodes<n>> = true;

/// String tile: the strings of a superblock, 64 channels of four string blocks, in shared memory.
/// Of each block it has eight lanes as weights/string_block.h orders the lanes of a sequence of 64
/// channels. The first words of the four lanes that come next follow: the last windows end there.
template <int quarters>
struct StringTile {
  static constexpr int lanes = Superblocks::size / (StringBlocks::lane_channels / StringBlocks::lane_columns);
  static constexpr int blocks = Superblocks::size / StringBlocks::columns;
  static constexpr int of_sequence = static_cast<int>(trellis_sequence) / Superblocks::size;
  static constexpr int first_bytes = quarters >= 4 ? 16 : 8;  ///< of a lane's first words
  static constexpr int own_bytes = lanes * 4 * quarters;      ///< of a block, without the lanes that come next
  static constexpr int block_vectors = (own_bytes + 4 * first_bytes) / 16;
  static constexpr int vectors = blocks * block_vectors;       ///< of 16 bytes
  static constexpr int block_bytes = 16 * block_vectors + 16;  ///< padding spreads blocks over the banks
  static constexpr int bytes = blocks * block_bytes;

  /// Byte of vector i in the tile.
  static constexpr int place(int i) { return i / block_vectors * block_bytes + i % block_vectors * 16; }
  /// Column of string blocks that vector i belongs to.
  static constexpr int block(int tile_column, int i) { return tile_column * blocks + i / block_vectors; }
  /// Byte of vector i in its string block of a sequence of `lanes_of_all` lanes. `first_lane`: the
  /// tile's.
  static constexpr int source(int i, int first_lane, int lanes_of_all) {
    const int byte = i % block_vectors * 16;
    if (byte >= own_bytes) {
      const int next = first_lane + lanes < lanes_of_all ? first_lane + lanes : 0;
      return next * first_bytes + byte - own_bytes;
    }
    // Lanes lie side by side with their first four words, then with their next four, and so on.
    const int fours = lanes * 16, whole = quarters / 4 * fours;
    int before = byte / fours * fours, width = 16;  // of all lanes; of a lane
    if (byte >= whole) {
      const bool is_last_of_three = quarters % 4 == 3 && byte >= whole + fours / 2;
      before = is_last_of_three ? whole + fours / 2 : whole;
      width = quarters % 4 == 1 || is_last_of_three ? 4 : 8;
    }
    return before / lanes * lanes_of_all + first_lane * width + byte - before;
  }
};

/// Where a string tile comes from.
template <int quarters>
struct StringTileSource {
  const uint8_t* blocks;  ///< of the sequence
  int block_count;
  int block_bytes;
  int first_lane, lanes;

  /// The tiles of superblock row `tile_row`.
  __device__ StringTileSource(const StringBlocks& layout, const uint8_t* codes, int tile_row) {
    const int sequence = tile_row / StringTile<quarters>::of_sequence;
    blocks = codes + layout.offset(sequence, 0);
    block_count = static_cast<int>(layout.blocks());
    block_bytes = static_cast<int>(layout.bytes_each(sequence));
    lanes = layout.lanes(sequence);
    first_lane = tile_row % StringTile<quarters>::of_sequence * StringTile<quarters>::lanes;
  }
  /// Whether vector i of tile `tile_column` exists: the last one may lack string blocks.
  __device__ __forceinline__ bool has(int tile_column, int i) const {
    return StringTile<quarters>::block(tile_column, i) < block_count;
  }
  __device__ __forceinline__ const uint8_t* vector(int tile_column, int i) const {
    return blocks + static_cast<int64_t>(StringTile<quarters>::block(tile_column, i)) * block_bytes +
           StringTile<quarters>::source(i, first_lane, lanes);
  }
};

/// Unpacks string tiles, a chunk of a superblock at a time. Lane 4 g + t gets its own places: rows
/// g and g + 8 of each fragment, at four columns of string block t. So it takes every eighth window
/// of a column, from the g-th on: words shifted by where that begins have the windows of all lanes
/// in the same places.
template <int quarters>
class StringFragments {
 public:
  __device__ StringFragments() {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    shift_ = static_cast<int>(trellis_bit(g, quarters));
    summand_ = trellis_summand + (trellis_again(g, quarters) ? trellis_states * trellis_factor : 0U);
  }

  /// a = the fp16 values of chunk `chunk`.
  __device__ __forceinline__ void unpack(const unsigned char* tile, int chunk, uint32_t (&a)[4][4]) const {
    uint32_t halves[2][2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) unpack_half(tile, half, chunk, halves[half]);
#pragma unroll
    for (int f = 0; f < 4; ++f)
#pragma unroll
      for (int r = 0; r < 4; ++r) a[f][r] = halves[f / 2][f % 2][r];
  }
  /// The same of 32 channels, fragments [2 half, 2 half + 2).
  __device__ __forceinline__ void unpack_half(const unsigned char* tile, int half, int chunk,
                                              uint32_t (&a)[2][4]) const {
    using Tile = StringTile<quarters>;
    const unsigned char* block = tile + threadIdx.x % 4 * Tile::block_bytes;
    const int next = half == 0 ? StringBlocks::byte_of_word(0, 4 + chunk, Tile::lanes, quarters)
                               : Tile::own_bytes + chunk * Tile::first_bytes;
    LaneStrings<quarters> strings;
    read_strings<quarters>(block, LanePlace<quarters>(4 * half + chunk, Tile::lanes, next), strings);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t even[shifted_words], odd[shifted_words];
      shift(strings.of_column[2 * pair], even);
      shift(strings.of_column[2 * pair + 1], odd);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][i % 2 + 2 * pair] = fp16_values(parts(even, i), parts(odd, i));
    }
  }

 private:
  static constexpr int distance = 2 * quarters;  ///< bits from a lane's window to its next
  static constexpr int shifted_words = (3 * distance + trellis_window + 31) / 32;
  using Words = LaneStrings<quarters>;

  __device__ __forceinline__ void shift(const uint32_t (&words)[Words::words],
                                        uint32_t (&shifted)[shifted_words]) const {
#pragma unroll
    for (int i = 0; i < shifted_words; ++i)
      shifted[i] = shift_right_double(words[i], i + 1 < Words::words ? words[i + 1] : 0, shift_);
  }
  /// The parts of the value of a lane's i-th window.
  __device__ __forceinline__ uint32_t parts(const uint32_t (&shifted)[shifted_words], int i) const {
    return parts_of_value(window_at(shifted, i * distance), summand_);
  }

  int shift_;
  uint32_t summand_;
};

}  // namespace nibblenet
