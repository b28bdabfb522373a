#pragma once

#include "kernels/cuda/weights/string_fragments.cuh"
#include "kernels/cuda/weights/superblock_scales.cuh"

// Code tiles: the codes of 64 rows and 64 columns as they lie in memory, superblocks or string
// tiles. Kernels copy columns of tiles to shared memory, 16 bytes at a time. Where a column ends
// early they copy its last tile again: nobody reads results of rows that do not exist.

namespace nibblenet {

/// The row of tiles, or the last one.
__device__ __forceinline__ int existing_row(const SuperblockWeights& w, int tile_row) {
  const int last = static_cast<int>(w.layout.tile_rows()) - 1;
  return tile_row < last ? tile_row : last;
}

/// A 16-byte vector of tiles that lie below each other, for the walk along their columns.
template <class Codes>
class CodeVector {
 public:
  static constexpr int tile_bytes = Codes::bits * Superblocks::row_bytes;
  static constexpr int per_tile = tile_bytes / 16;

  CodeVector() = default;
  /// Vector i, counted from row `first_tile_row` of tiles on.
  __device__ CodeVector(const SuperblockWeights& w, int first_tile_row, int i) {
    at_ = existing_row(w, first_tile_row + i / per_tile) * static_cast<int>(w.layout.tile_columns()) * per_tile +
          i % per_tile;
  }
  /// Byte of vector i in shared memory.
  static __device__ int place(int i) { return i * 16; }
  /// Starts copying vector i of column `tile_column`.
  __device__ __forceinline__ void copy(const SuperblockWeights& w, int tile_column, int, unsigned char* to) const {
    cp_async_16(to, w.codes + int64_t{16} * (at_ + tile_column * per_tile), true);
  }

 private:
  int at_;  ///< in column 0, in vectors
};

template <int quarters>
class CodeVector<StringCodes<quarters>> {
  using Tile = StringTile<quarters>;

 public:
  static constexpr int tile_bytes = Tile::bytes;
  static constexpr int per_tile = Tile::vectors;

  CodeVector() = default;
  __device__ CodeVector(const SuperblockWeights& w, int first_tile_row, int i) {
    const StringTileSource<quarters> source(w.strings, w.codes, existing_row(w, first_tile_row + i / per_tile));
    at_ = static_cast<int>((source.vector(0, i % per_tile) - w.codes) / 16);
    step_ = Tile::blocks * source.block_bytes / 16;
  }
  static __device__ int place(int i) { return i / per_tile * tile_bytes + Tile::place(i % per_tile); }
  __device__ __forceinline__ void copy(const SuperblockWeights& w, int tile_column, int i, unsigned char* to) const {
    const bool exists = Tile::block(tile_column, i % per_tile) < static_cast<int>(w.strings.blocks());
    cp_async_16(to, w.codes + int64_t{16} * (exists ? at_ + tile_column * step_ : 0), exists);
  }

 private:
  int at_;
  int step_;  ///< from a column to the next one
};

}  // namespace nibblenet
