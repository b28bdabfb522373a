#pragma once

#include <type_traits>

#include "kernels/cuda/gemm/mma_tile.cuh"
#include "kernels/cuda/gemm/split_k.cuh"

// mma products: convolutions and linear layers of many rows on the tensor cores. Implicit GEMM
// (Chetlur et al. 2014, arXiv 1410.0759) with packed weights, which are unpacked from superblocks
// to fragments in registers (Marlin, Frantar 2024, arXiv 2408.11743). Trellis strings take more
// instructions, so a block unpacks them once for all its warps, to superblocks of fp16 values in
// shared memory.

namespace nibblenet {

/// Parameters of the kernel: y [N, P, Q, K] from x [N, H, W, C] and packed filters [K, R S C].
struct MmaProduct {
  SuperblockWeights weights;
  const f16* x;
  PixelBlocks pixels = {};
  BiasEpilogue<AnyElements> epilogue = {};
  int splits = 0;                  ///< of the superblocks along k, each a block's
  float* partial = nullptr;        ///< [splits, blocks, columns of a block, rows of a block]
  unsigned* semaphores = nullptr;  ///< by block: how many splits are done
};

/// MmaShared at compile time, for one kind of codes. With strings, the ring has two stages of
/// unpacked superblocks, and the place of the third holds a ring of string tiles.
template <class Codes>
struct MmaMemory {
  static constexpr MmaShared layout{Codes::bits, Codes::integers};
  static constexpr int superblocks = layout.superblocks;
  static constexpr int stages = are_strings<Codes> ? mma_stages - 1 : mma_stages;
  static constexpr int ring_at = layout.ring_at;
  static constexpr int slices_at = layout.slices_at;
  static constexpr int column = MmaShared::column;
  static_assert(ring_at == (std::is_empty_v<typename Codes::Table> ? 0 : sizeof(typename Codes::Table)));
};

/// Ring of a block's operands. The block walks through its superblocks slice by slice, and through
/// each slice tap by tap, so that x is copied once. Copies run `mma_stages` - 1 k-tiles ahead,
/// those of strings one more: they are unpacked one k-tile ahead.
template <class Codes>
struct OperandRing {
  using Shared = MmaMemory<Codes>;
  static constexpr int weights_ahead = are_strings<Codes> ? mma_stages : mma_stages - 1;
  const MmaProduct& p;
  unsigned char* memory;
  int block;           ///< of pixels
  int first_tile_row;  ///< superblock row
  int begin, end;      ///< k-tiles

  __device__ unsigned char* superblocks(int k_tile) const {
    return memory + Shared::ring_at + k_tile % Shared::stages * Shared::superblocks;
  }
  __device__ unsigned char* strings(int k_tile) const {
    constexpr int bytes = mma_row_warps * StringTile<Codes::quarters>::bytes;
    static_assert(mma_stages * bytes <= Shared::superblocks);
    return memory + Shared::ring_at + Shared::stages * Shared::superblocks + k_tile % mma_stages * bytes;
  }
  __device__ unsigned char* pixels(int k_tile) const {
    const int slot = k_tile / p.pixels.sizes.taps() % p.pixels.slots;
    return memory + Shared::slices_at + slot * p.pixels.positions() * slice_bytes;
  }
  /// Column of the superblock of a k-tile. In memory, superblocks lie tap by tap, each tap slice by
  /// slice.
  __device__ int tile_column(int k_tile) const {
    const int taps = p.pixels.sizes.taps();
    return k_tile % taps * p.pixels.slices() + k_tile / taps;
  }

  __device__ void copy_weights(int k_tile) const {
    if (k_tile >= end) return;
    unsigned char* to = nullptr;
    if constexpr (are_strings<Codes>)
      to = strings(k_tile);
    else
      to = superblocks(k_tile);
    using Vector = CodeVector<Codes>;
    for (int i = static_cast<int>(threadIdx.x); i < mma_row_warps * Vector::per_tile; i += static_cast<int>(blockDim.x))
      Vector(p.weights, first_tile_row, i).copy(p.weights, tile_column(k_tile), i, to + Vector::place(i));
  }
  /// Unpacks the string tiles of a k-tile, which have landed. The warps share the chunks of all
  /// superblocks. A barrier follows.
  __device__ __forceinline__ void unpack_strings(int k_tile) const {
    if (k_tile >= end) return;
    using Tile = StringTile<Codes::quarters>;
    const StringFragments<Codes::quarters> fragments;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool has_block = tile_column(k_tile) * Tile::blocks + lane % 4 < p.weights.strings.blocks();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) / 32; i < mma_row_warps * Superblocks::chunks;
         i += static_cast<int>(blockDim.x) / 32) {
      const int half = i / Superblocks::chunks, chunk = i % Superblocks::chunks;
      if (first_tile_row + half >= p.weights.layout.tile_rows()) break;
      uint32_t a[4][4] = {};
      if (has_block) fragments.unpack(strings(k_tile) + half * Tile::bytes, chunk, a);
      unsigned char* to = superblocks(k_tile) + (half * Codes::bits + 4 * chunk) * Superblocks::row_bytes + lane * 16;
#pragma unroll
      for (int f = 0; f < 4; ++f)
        *reinterpret_cast<uint4*>(to + f * Superblocks::row_bytes) = {a[f][0], a[f][1], a[f][2], a[f][3]};
    }
  }
  /// Copies the slice of x if the k-tile begins one, and closes the k-tile's cp.async group.
  __device__ void copy_pixels(int k_tile) const {
    const int taps = p.pixels.sizes.taps();
    if (k_tile < end && (k_tile == begin || k_tile % taps == 0))
      copy_slice(p.pixels, p.x, block, k_tile / taps, pixels(k_tile));
    cp_async_commit();
  }
  /// Starts the copies of the first k-tiles. Weights may load early; x waits for the kernel before.
  __device__ void begin_copies() const {
#pragma unroll 1
    for (int i = 0; i < weights_ahead; ++i) copy_weights(begin + i);
    if constexpr (are_strings<Codes>) cp_async_commit();
    pdl_wait();
#pragma unroll 1
    for (int i = 0; i < mma_stages - 1; ++i) copy_pixels(begin + i);
    if constexpr (are_strings<Codes>) {
      cp_async_wait<mma_stages - 1>();
      __syncthreads();
      unpack_strings(begin);
    }
  }
};

/// A warp's sums over the superblocks of a block's split.
template <class Codes>
__device__ __forceinline__ void sum_split(const MmaProduct& p, const OperandRing<Codes>& ring, TileSums& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int half = warp % mma_row_warps;
  const int first_column = warp / mma_row_warps * mma_warp_columns + static_cast<int>(threadIdx.x) % 32 / 4;
  const bool has_rows = ring.first_tile_row + half < p.weights.layout.tile_rows();
  const bool with_steps = !are_strings<Codes> && p.weights.inside;
  const auto& table = *reinterpret_cast<const typename Codes::Table*>(ring.memory);
  int first[mma_warp_tiles];
#pragma unroll
  for (int tile = 0; tile < mma_warp_tiles; ++tile) first[tile] = p.pixels.position(first_column + 8 * tile);

  ring.begin_copies();
  FragmentSteps steps = {};
  for (int k_tile = ring.begin; k_tile < ring.end; ++k_tile) {
    if (with_steps) load_steps<Codes>(p.weights, ring.first_tile_row + half, ring.tile_column(k_tile), steps);
    cp_async_wait<mma_stages - 2>();
    __syncthreads();  // this k-tile has landed, and all threads are done reading the last one
    ring.copy_weights(k_tile + ring.weights_ahead);
    ring.copy_pixels(k_tile + mma_stages - 1);
    if constexpr (are_strings<Codes>) ring.unpack_strings(k_tile + 1);
    if (!has_rows) continue;
    const int tap = k_tile % p.pixels.sizes.taps();
    const int down = tap / p.pixels.sizes.size;
    const int offset = down * p.pixels.width + tap - down * p.pixels.sizes.size;
    int position[mma_warp_tiles];
#pragma unroll
    for (int tile = 0; tile < mma_warp_tiles; ++tile) position[tile] = first[tile] + offset;
    multiply_superblock<Codes>(ring.superblocks(k_tile) + half * Codes::bits * Superblocks::row_bytes,
                               ring.pixels(k_tile), position, table, steps, with_steps, sums);
  }
  cp_async_wait<0>();
  __syncthreads();  // shared memory is free
}

/// Split-K reduction: stores the sums of this split. The last block to arrive adds the sums of all
/// splits in their order; only there it returns true.
__device__ __forceinline__ bool add_up_splits(const MmaProduct& p, int split, TileSums& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int columns = static_cast<int>(blockDim.x) / 32 / mma_row_warps * mma_warp_columns;
  const int64_t blocks = static_cast<int64_t>(gridDim.x) * gridDim.y;
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const auto column_of = [&](int of_split, int row) {
    const int64_t first = ((of_split * blocks + block) * columns + warp / mma_row_warps * mma_warp_columns) * mma_rows;
    return p.partial + first + warp % mma_row_warps * Superblocks::size + row;
  };
  for_each_sum(sums, [&](int row) {
    return [to = column_of(split, row)](int tile, int e, float sum) { to[column_of_sum(tile, e) * mma_rows] = sum; };
  });
  if (!arrives_last(p.semaphores[block], p.splits)) return false;
  sums = {};
#pragma unroll 1
  for (int of_split = 0; of_split < p.splits; ++of_split)
    for_each_sum(sums, [&](int row) {
      return [from = column_of(of_split, row)](int tile, int e, float& sum) {
        sum += __ldcg(from + column_of_sum(tile, e) * mma_rows);
      };
    });
  return true;
}

/// Applies the epilogue and stores the results in shared memory as fp16 values, column by column.
/// All threads; a barrier follows.
template <class Codes>
__device__ __forceinline__ void store_results(const MmaProduct& p, int first_row, unsigned char* memory,
                                              TileSums& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int half = warp % mma_row_warps * Superblocks::size;
  f16* results = reinterpret_cast<f16*>(memory) +
                 static_cast<int64_t>(warp / mma_row_warps) * mma_warp_columns * MmaMemory<Codes>::column + half;
  for_each_sum(sums, [&](int row) {
    const int of_all = first_row + half + row;  // rows past the end are not stored
    return [=, finish = p.epilogue.of_row(of_all < p.epilogue.rows ? of_all : 0)](int tile, int e, float sum) {
      store_element(results, column_of_sum(tile, e) * MmaMemory<Codes>::column + row, finish(sum));
    };
  });
  __syncthreads();
}

/// Stores eight rows of one pixel of y, 16 bytes at a time where K allows it.
__device__ __forceinline__ void copy_rows(const BiasEpilogue<AnyElements>& epilogue, int pixel, int row,
                                          const uint4& v) {
  f16* to = static_cast<f16*>(epilogue.y.data) + static_cast<int64_t>(pixel) * epilogue.rows + row;
  if (epilogue.rows % 8 == 0) {
    *reinterpret_cast<uint4*>(to) = v;
    return;
  }
  const auto* from = reinterpret_cast<const f16*>(&v);
  for (int e = 0; e < 8 && row + e < epilogue.rows; ++e) to[e] = from[e];
}

/// Copies results from shared memory to y.
template <class Codes>
__device__ __forceinline__ void copy_results(const MmaProduct& p, int block, int first_row,
                                             const unsigned char* memory) {
  constexpr int vectors = mma_rows / 8;
  for (int i = static_cast<int>(threadIdx.x); i < p.pixels.columns() * vectors; i += static_cast<int>(blockDim.x)) {
    const int pixel = p.pixels.pixel(block, i / vectors);
    const int row = i % vectors * 8;
    if (pixel < 0 || first_row + row >= p.epilogue.rows) continue;
    const unsigned char* from = memory + (i / vectors * MmaMemory<Codes>::column + row) * sizeof(f16);
    copy_rows(p.epilogue, pixel, first_row + row, *reinterpret_cast<const uint4*>(from));
  }
}

/// Max pooling: stores the maximum of each window of results in y, or NaN if the window holds one.
template <class Codes>
__device__ __forceinline__ void pool_results(const MmaProduct& p, int block, int first_row,
                                             const unsigned char* memory) {
  constexpr int vectors = mma_rows / 8;
  const MaxPooling& pool = p.pixels.pooling;
  const int count = p.pixels.images * pool.rows * pool.q * vectors;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int row = i % vectors * 8;
    const int across = i / vectors / pool.q;
    const int q = i / vectors - across * pool.q;
    const int image = across / pool.rows;
    const int down = across - image * pool.rows;
    const int n = block / p.pixels.bands * p.pixels.images + image;
    const int pooled = block % p.pixels.bands * pool.rows + down;
    if (n >= p.pixels.sizes.n || pooled >= pool.p || first_row + row >= p.epilogue.rows) continue;
    const int first = (image * p.pixels.rows + down * pool.stride) * p.pixels.sizes.q + q * pool.stride;
    uint4 largest = {0xFC00FC00U, 0xFC00FC00U, 0xFC00FC00U, 0xFC00FC00U};  // -infinity
    for (int r = 0; r < pool.size; ++r)
      for (int s = 0; s < pool.size; ++s) {
        const int column = first + r * p.pixels.sizes.q + s;
        const unsigned char* from = memory + (column * MmaMemory<Codes>::column + row) * sizeof(f16);
        const uint4 v = *reinterpret_cast<const uint4*>(from);
        largest = {max_fp16x2(largest.x, v.x), max_fp16x2(largest.y, v.y), max_fp16x2(largest.z, v.z),
                   max_fp16x2(largest.w, v.w)};
      }
    copy_rows(p.epilogue, (n * pool.p + pooled) * pool.q + q, first_row + row, largest);
  }
}

/// Stores sums as float32 directly in y.
__device__ __forceinline__ void store_floats(const MmaProduct& p, int block, int first_row, TileSums& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_column = warp / mma_row_warps * mma_warp_columns + static_cast<int>(threadIdx.x) % 4 * 2;
  auto* y = static_cast<float*>(p.epilogue.y.data);
  int pixel[mma_warp_tiles][2];
#pragma unroll
  for (int tile = 0; tile < mma_warp_tiles; ++tile)
#pragma unroll
    for (int e = 0; e < 2; ++e) pixel[tile][e] = p.pixels.pixel(block, first_column + 8 * tile + e);
  for_each_sum(sums, [&](int row_of_half) {
    const int row = first_row + warp % mma_row_warps * Superblocks::size + row_of_half;
    const bool exists = row < p.epilogue.rows;
    return
        [=, &pixel, finish = p.epilogue.of_row(exists ? row : 0), rows = p.epilogue.rows](int tile, int e, float sum) {
          const int at = pixel[tile][e];
          if (exists && at >= 0) y[static_cast<int64_t>(at) * rows + row] = finish(sum);
        };
  });
}

/// mma product: y = epilogue(x * w + bias), optionally max-pooled. Block (x, y, z) owns pixel block
/// x, 128 rows and split z of the superblocks along k. Two warps share a column of 32 pixels, with
/// 64 rows each; up to six such pairs lie side by side. There is one barrier per superblock; while
/// one is multiplied, the next ones are copied.
template <class Codes>
__global__ void __launch_bounds__(32 * mma_row_warps * mma_most_column_warps(Codes::bits, Codes::integers))
    mma_kernel(MmaProduct p) {
  unsigned char* memory = dynamic_shared();
  const int block = static_cast<int>(blockIdx.x);
  const int first_tile_row = static_cast<int>(blockIdx.y) * mma_row_warps;
  const int split = static_cast<int>(blockIdx.z);
  const int k_tiles = p.pixels.slices() * p.pixels.sizes.taps();
  const OperandRing<Codes> ring{
      p, memory, block, first_tile_row, k_tiles * split / p.splits, k_tiles * (split + 1) / p.splits};

  pdl_trigger();
  p.weights.prepare<Codes>(*reinterpret_cast<typename Codes::Table*>(memory));
  TileSums sums = {};
  sum_split<Codes>(p, ring, sums);
  if (p.splits > 1 && !add_up_splits(p, split, sums)) return;

  const int first_row = first_tile_row * Superblocks::size;
  if (p.epilogue.y.fp16) {
    store_results<Codes>(p, first_row, memory, sums);
    if (p.pixels.pooling.size > 0)
      pool_results<Codes>(p, block, first_row, memory);
    else
      copy_results<Codes>(p, block, first_row, memory);
  } else {
    store_floats(p, block, first_row, sums);
  }
}

}  // namespace nibblenet
