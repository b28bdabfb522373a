#pragma once

#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/weights/string_fragments.cuh"

// wgmma products of linear layers whose weights are trellis strings. wgmma reads fp16 values in
// shared memory, so a block unpacks the strings of its rows there, one k-tile ahead, while the
// tensor cores multiply.

namespace nibblenet {

/// Weights [K, C] as trellis strings in blocks, of `n` quarters of a bit a weight. A block has
/// `size` rows.
template <int n, int size>
struct StringRowTiles {
  using Tile = WgmmaTileAlongK<size>;
  static constexpr int quarters = n;
  /// String tiles that a block's rows lie in. Blocks of 96 rows may begin inside of one.
  static constexpr int string_tiles = 2;
  static_assert(size == 64 || size == 96 || size == 128);

  StringBlocks strings;
  const uint8_t* codes;
  int tile_rows;  ///< of string tiles

  /// Starts copying the string tiles of a k-tile, from tile row `first_tile_row` on.
  __device__ __forceinline__ void copy(int k_tile, int first_tile_row, unsigned char* to) const {
    copy_string_tiles<quarters, string_tiles>(strings, codes, tile_rows, first_tile_row,
                                              k_tile * StringTile<quarters>::blocks, wgmma_threads, to);
  }
};

/// Ring of pixels, copied as in WgmmaRing, and of strings, copied one k-tile earlier and unpacked
/// one k-tile before they are multiplied.
template <class A, int quarters, int size>
class WgmmaRing<A, StringRowTiles<quarters, size>> {
  using B = StringRowTiles<quarters, size>;
  using Strings = StringTile<quarters>;
  static constexpr int string_bytes = B::string_tiles * Strings::bytes;  ///< of a k-tile
  static constexpr int b_at = wgmma_stages * A::Tile::bytes;
  static constexpr int strings_at = b_at + 2 * B::Tile::bytes;
  static_assert(strings_at % 16 == 0 && string_bytes % 16 == 0);

 public:
  static constexpr int bytes = strings_at + wgmma_stages * string_bytes + wgmma_alignment;

  __device__ WgmmaRing(const A& a, const B& b, int first_i, int first_j, int begin, int end, unsigned char* memory)
      : a_(a), b_(b), of_a_(a.place(first_i, begin)), first_j_(first_j), begin_(begin), end_(end), memory_(memory) {}

  __device__ const unsigned char* a() const { return memory_ + stage_ * A::Tile::bytes; }
  __device__ const unsigned char* b() const { return unpacked(parity_); }

  __device__ __forceinline__ void start() {
    copy_strings(begin_, 0);
    cp_async_commit();
#pragma unroll 1
    for (int i = 0; i < wgmma_stages - 1; ++i) copy(begin_ + i, i, i + 1);
    cp_async_wait<wgmma_stages - 1>();
    __syncthreads();  // the first strings have landed
    unpack(0, 0);
  }
  /// Also unpacks the strings of the next k-tile.
  __device__ __forceinline__ void refill(int k_tile) {
    copy(k_tile + wgmma_stages - 1, before(stage_), stage_);
    if (k_tile + 1 < end_) unpack(behind(stage_), 1 - parity_);
  }
  __device__ __forceinline__ void advance() {
    stage_ = behind(stage_);
    parity_ = 1 - parity_;
  }

 private:
  static __device__ int behind(int stage) { return stage + 1 == wgmma_stages ? 0 : stage + 1; }
  static __device__ int before(int stage) { return stage == 0 ? wgmma_stages - 1 : stage - 1; }
  __device__ unsigned char* unpacked(int parity) const { return memory_ + b_at + parity * B::Tile::bytes; }
  __device__ unsigned char* strings(int stage) const { return memory_ + strings_at + stage * string_bytes; }

  /// Starts copying the pixels of a k-tile, and the strings of the one behind it.
  __device__ __forceinline__ void copy(int k_tile, int stage, int strings_stage) {
    if (k_tile < end_) a_.copy(of_a_, memory_ + stage * A::Tile::bytes);
    copy_strings(k_tile + 1, strings_stage);
    cp_async_commit();
  }
  __device__ __forceinline__ void copy_strings(int k_tile, int stage) const {
    if (k_tile < end_) b_.copy(k_tile, first_j_ / Superblocks::size, strings(stage));
  }
  /// Unpacks strings that have landed. A warp takes 32 rows at half of the k-tile: two chunks. A
  /// lane has eight neighbours in each of four rows, and stores four at a time. Half of the lanes
  /// begin with the second chunk: so their stores do not meet in a bank.
  __device__ __forceinline__ void unpack(int stage, int parity) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (warp / 2 >= size / 32) return;
    const int half = first_j_ / 32 + warp / 2;
    const unsigned char* tile = strings(stage) + (half / 2 - first_j_ / Superblocks::size) * Strings::bytes;
    const int vector = lane % 4 * 2 + warp % 2;
    unsigned char* to = unpacked(parity) + (warp / 2 * 32 + lane / 4) * 128 + ((vector ^ lane / 4) << 4);
    const StringFragments<quarters> fragments;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int chunk = i ^ (lane / 8 & 1);
      uint32_t a[2][4];
      fragments.unpack_half(tile, half % 2, warp % 2 * 2 + chunk, a);
#pragma unroll
      for (int f = 0; f < 2; ++f)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          *reinterpret_cast<uint2*>(to + (16 * f + 8 * r) * 128 + chunk * 8) = {a[f][r], a[f][r + 2]};
    }
  }

  const A& a_;
  const B& b_;
  typename A::Place of_a_;
  int first_j_;
  int begin_, end_;  ///< k-tiles
  unsigned char* memory_;
  int stage_ = 0;
  int parity_ = 0;
};

}  // namespace nibblenet
