#pragma once

#include "kernels/cuda/gemm/wgmma.cuh"
#include "kernels/cuda/weights/code_tile.cuh"

// wgmma products by packed weights. wgmma reads fp16 values in shared memory, so a block unpacks
// the codes of its rows there, one k-tile ahead, while the tensor cores multiply. Codes come as
// tiles of 64 rows and one k-tile: superblocks, or string tiles.

namespace nibblenet {

/// Unpacks `count` code tiles below each other to rows of fp16 values.
template <class Codes, int count>
struct CodeTileRows {
  /// Unpacks the `size` rows from row `first_row` of the tiles on. A warp takes a chunk of a
  /// superblock at a time. A lane has four neighbours in each of eight rows. Half of the lanes take
  /// the chunk beside: so their stores do not meet in a bank.
  template <int size>
  static __device__ __forceinline__ void unpack(const typename Codes::Table& table, const unsigned char* codes,
                                                int first_row, unsigned char* rows) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int begin = 0; begin < count * Superblocks::chunks; begin += wgmma_threads / 32) {
      const int i = begin + static_cast<int>(threadIdx.x) / 32;
      if (begin + wgmma_threads / 32 > count * Superblocks::chunks && i >= count * Superblocks::chunks) break;
      const int chunk = i % Superblocks::chunks ^ (lane / 8 & 1);
      uint32_t words[Codes::bits], a[4][4];
      load_chunk<Codes::bits>(codes + i / Superblocks::chunks * Codes::bits * Superblocks::row_bytes, chunk, words);
      Codes{}.decode(words, table, a);
      const int first = i / Superblocks::chunks * Superblocks::size - first_row + lane / 4;
      const int vector = lane % 4 * 2 + chunk / 2;
      unsigned char* to = rows + first * 128 + ((vector ^ lane / 4) << 4) + chunk % 2 * 8;
#pragma unroll
      for (int f = 0; f < 4; ++f)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (const int row = 16 * f + 8 * r;
              size % Superblocks::size == 0 || static_cast<unsigned>(first + row) < size)
            *reinterpret_cast<uint2*>(to + row * 128) = {a[f][r], a[f][r + 2]};
    }
  }
};

template <int quarters, int count>
struct CodeTileRows<StringCodes<quarters>, count> {
  /// A warp takes 32 rows at half of the k-tile.
  template <int size>
  static __device__ __forceinline__ void unpack(const HalfCodes::Table&, const unsigned char* codes, int first_row,
                                                unsigned char* rows) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (2 * size / 32 < wgmma_threads / 32 && warp / 2 >= size / 32) return;
    const int half = first_row / 32 + warp / 2;
    const int vector = lane % 4 * 2 + warp % 2;
    unsigned char* to = rows + (warp / 2 * 32 + lane / 4) * 128 + ((vector ^ lane / 4) << 4);
    const StringFragments<quarters> fragments;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int chunk = i ^ (lane / 8 & 1);
      uint32_t a[2][4];
      fragments.unpack_half(codes + half / 2 * StringTile<quarters>::bytes, half % 2, warp % 2 * 2 + chunk, a);
#pragma unroll
      for (int f = 0; f < 2; ++f)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          *reinterpret_cast<uint2*>(to + (16 * f + 8 * r) * 128 + chunk * 8) = {a[f][r], a[f][r + 2]};
    }
  }
};

/// Packed weights [K, R S C]; C is a multiple of 64, or the weights are a matrix. A block has
/// `size` rows.
template <class C, int size>
struct PackedRowTiles {
  using Codes = C;
  using Tile = WgmmaTileAlongK<size>;
  /// Blocks of 96 rows may begin inside of a tile of 64.
  static constexpr int code_tiles = ceil_div(size, Superblocks::size);
  static constexpr int code_bytes = code_tiles * CodeVector<Codes>::tile_bytes;
  static_assert(size % 64 == 0 || size == 96);

  SuperblockWeights weights;
  int slices, filter_size;  ///< k-tiles of a tap; taps of a filter's row

  using Vector = CodeVector<Codes>;
  static constexpr int vectors = code_tiles * Vector::per_tile;  ///< of a k-tile
  static constexpr int copies = ceil_div(vectors, wgmma_threads);
  static __device__ int vector(int copy) { return copy * wgmma_threads + static_cast<int>(threadIdx.x); }

  /// The vectors that a thread copies.
  struct Place {
    Vector of_copy[copies];
  };
  __device__ Place place(int first_row) const {
    Place place;
#pragma unroll
    for (int i = 0; i < copies; ++i) place.of_copy[i] = Vector(weights, first_row / Superblocks::size, vector(i));
    return place;
  }
  /// Starts copying the codes of the k-tile at `walk`.
  __device__ __forceinline__ void copy(const Place& place, const TapWalk& walk, unsigned char* to) const {
    const int tile_column = (walk.r * filter_size + walk.s) * slices + walk.slice;
#pragma unroll
    for (int i = 0; i < copies; ++i)
      if ((i + 1) * wgmma_threads <= vectors || vector(i) < vectors)
        place.of_copy[i].copy(weights, tile_column, vector(i), to + Vector::place(vector(i)));
  }
  /// Unpacks codes that have landed to rows of fp16 values. `first_row`: of the block.
  __device__ __forceinline__ void unpack(const typename Codes::Table& table, const unsigned char* codes, int first_row,
                                         unsigned char* rows) const {
    const int in_tile = size % Superblocks::size == 0 ? 0 : first_row % Superblocks::size;
    CodeTileRows<Codes, code_tiles>::template unpack<size>(table, codes, in_tile, rows);
  }
};

/// Ring of pixels, copied as in WgmmaRing, and of codes, copied one k-tile earlier and unpacked one
/// k-tile before they are multiplied.
template <class A, class Codes, int size>
class WgmmaRing<A, PackedRowTiles<Codes, size>> {
  using B = PackedRowTiles<Codes, size>;
  using Table = typename Codes::Table;
  static constexpr int rows_at = wgmma_stages * A::Tile::bytes;
  static constexpr int codes_at = rows_at + 2 * B::Tile::bytes;
  static constexpr int table_at = codes_at + wgmma_stages * B::code_bytes;
  static constexpr int table_bytes = std::is_empty_v<Table> ? 0 : static_cast<int>(sizeof(Table));
  static_assert(codes_at % 16 == 0 && B::code_bytes % 16 == 0);

 public:
  static constexpr int bytes = table_at + table_bytes + wgmma_alignment;
  static_assert(bytes <= (113 << 10) - 1024);  // two blocks on a multiprocessor of 227 KB, each with 1 KB more

  __device__ WgmmaRing(const A& a, const B& b, int first_i, int first_j, int begin, int end, unsigned char* memory)
      : a_(a),
        b_(b),
        of_a_(a.place(first_i, begin)),
        of_b_(b.place(first_j)),
        first_j_(first_j),
        k_tile_(begin),
        end_(end),
        memory_(memory) {}

  __device__ const unsigned char* a() const { return memory_ + stage_ * A::Tile::bytes; }
  __device__ const unsigned char* b() const { return rows(k_tile_); }

  __device__ __forceinline__ void start() {
    copy_codes(k_tile_, 0);
    cp_async_commit();
#pragma unroll 1
    for (int i = 0; i < wgmma_stages - 1; ++i) copy(k_tile_ + i, i, i + 1);
    b_.weights.template prepare<Codes>(table());
    cp_async_wait<wgmma_stages - 1>();
    __syncthreads();  // the first codes and the table are there
    unpack(0, k_tile_);
  }
  /// Also unpacks the codes of the next k-tile.
  __device__ __forceinline__ void refill(int k_tile) {
    copy(k_tile + wgmma_stages - 1, before(stage_), stage_);
    if (k_tile + 1 < end_) unpack(behind(stage_), k_tile + 1);
  }
  __device__ __forceinline__ void advance() {
    stage_ = behind(stage_);
    ++k_tile_;
  }

 private:
  static __device__ int behind(int stage) { return stage + 1 == wgmma_stages ? 0 : stage + 1; }
  static __device__ int before(int stage) { return stage == 0 ? wgmma_stages - 1 : stage - 1; }
  __device__ unsigned char* rows(int k_tile) const { return memory_ + rows_at + k_tile % 2 * B::Tile::bytes; }
  __device__ unsigned char* codes(int stage) const { return memory_ + codes_at + stage * B::code_bytes; }
  __device__ Table& table() const { return *reinterpret_cast<Table*>(memory_ + table_at); }

  /// Starts copying the pixels of a k-tile, and the codes of the one behind it.
  __device__ __forceinline__ void copy(int k_tile, int stage, int codes_stage) {
    if (k_tile < end_) a_.copy(of_a_, memory_ + stage * A::Tile::bytes);
    copy_codes(k_tile + 1, codes_stage);
    cp_async_commit();
  }
  /// The walk of the pixels is at this k-tile.
  __device__ __forceinline__ void copy_codes(int k_tile, int stage) const {
    if (k_tile < end_) b_.copy(of_b_, of_a_.walk, codes(stage));
  }
  /// Unpacks codes that have landed.
  __device__ __forceinline__ void unpack(int stage, int k_tile) const {
    b_.unpack(table(), codes(stage), first_j_, rows(k_tile));
  }

  const A& a_;
  const B& b_;
  typename A::Place of_a_;
  typename B::Place of_b_;
  int first_j_;
  int k_tile_, end_;
  unsigned char* memory_;
  int stage_ = 0;
};

}  // namespace nibblenet
