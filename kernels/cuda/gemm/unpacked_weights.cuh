#pragma once

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/mma_tile.cuh"
#include "kernels/cuda/gemm/product.h"
#include "kernels/cuda/weights/superblock_scales.cuh"

// Expands weights to fp16 values, in rows (device order) or in superblocks, for kernels that do not
// unpack themselves.

namespace nibblenet {

inline constexpr int weight_superblock_threads = 256;  ///< for each superblock

/// rows [K, R S C] = weights times `factor`, rounded to fp16, read by any reader of
/// weights/readers.cuh. One thread per eight neighbours.
template <class Weights>
__global__ void weight_rows_kernel(f16* rows, Weights weights, float factor) {
  auto& table = shared<CodeValues>();
  pdl_trigger();
  weights.prepare(table);
  __syncthreads();
  pdl_wait();  // the kernel before may still read rows there
  const int vectors = (weights.sizes.length + 7) / 8;
  for_each_index(static_cast<int64_t>(weights.sizes.rows) * vectors, [&](int64_t i) {
    const auto row = static_cast<int>(i / vectors);
    const int k = static_cast<int>(i - static_cast<int64_t>(row) * vectors) * 8;
    float w[8];
    weights.load8(row, k, table, w);
    f16* to = rows + static_cast<int64_t>(row) * weights.sizes.length + k;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (k + e < weights.sizes.length) store_element(to, e, w[e] * factor);
  });
}

/// Superblocks of fp16 values, of whole 64 columns, with zeros where there are no rows. One thread
/// per eight neighbours of two rows: a lane's part of a fragment in two chunks.
template <class Weights>
__global__ void weight_superblocks_kernel(uint8_t* superblocks, Weights weights, float factor) {
  auto& table = shared<CodeValues>();
  pdl_trigger();
  weights.prepare(table);
  __syncthreads();
  pdl_wait();  // the kernel before may still read superblocks there
  const Superblocks layout(weights.sizes.rows, weights.sizes.length, HalfCodes::bits);
  const auto tile_column = static_cast<int>(layout.tile_columns());
  for_each_index(layout.tile_rows() * tile_column * weight_superblock_threads, [&](int64_t i) {
    const auto superblock = static_cast<int>(i / weight_superblock_threads);
    const int lane = static_cast<int>(i % 32);
    const int fragment = static_cast<int>(i / 32 % 4);
    const int eight = static_cast<int>(i / 128 % 2);
    const int tile_row = superblock / tile_column;
    const int row = tile_row * Superblocks::size + 16 * fragment + lane / 4;
    const int column = (superblock - tile_row * tile_column) * Superblocks::size + lane % 4 * 16 + 8 * eight;
    float w[2][8];
    weights.load8(row, column, table, w[0]);
    weights.load8(row + 8, column, table, w[1]);
#pragma unroll
    for (int chunk = 0; chunk < 2; ++chunk) {
      const auto pair = [&](int r) {  // register r of the fragment
        const float* of_row = w[r % 2] + 4 * chunk + r / 2 * 2;
        return pair_of_fp16(of_row[0] * factor, of_row[1] * factor);
      };
      const int load = (2 * eight + chunk) * 4 + fragment;
      *reinterpret_cast<uint4*>(superblocks + superblock * layout.bytes_each() + load * Superblocks::row_bytes +
                                lane * 16) = {pair(0), pair(1), pair(2), pair(3)};
    }
  });
}

inline constexpr int superblock_rows_warps = 4;

/// Dynamic shared memory of a block: the look-up table, and the fp16 values of each warp's
/// superblock. Padding spreads rows over the banks.
template <class Codes>
struct SuperblockRowsShared {
  alignas(16) typename Codes::Table table;
  alignas(16) f16 fp16[superblock_rows_warps][Superblocks::size][Superblocks::size + 8];
};

/// Unpacks half `pair` of a superblock's chunks to fp16 values, row by row. `with_steps`:
/// multiplies them by `steps`.
template <class Codes, int pair>
__device__ __forceinline__ void unpack_chunks(const uint8_t* codes, const typename Codes::Table& table,
                                              const FragmentSteps& steps, bool with_steps,
                                              f16 (&rows)[Superblocks::size][Superblocks::size + 8]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t words[2 * Codes::bits];
  load_words<2 * pair * Codes::bits>(codes, words);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t chunk[Codes::bits];
#pragma unroll
    for (int j = 0; j < Codes::bits; ++j) chunk[j] = words[i * Codes::bits + j];
    uint32_t a[4][4];
    Codes{}.decode(chunk, table, a);
    if (with_steps) apply_steps(steps, a);
    const int column = lane % 4 * 16 + (2 * pair + i) * 4;
#pragma unroll
    for (int f = 0; f < 4; ++f)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        *reinterpret_cast<uint32_t*>(&rows[16 * f + lane / 4 + r % 2 * 8][column + r / 2 * 2]) = a[f][r];
  }
}

/// Rows of fp16 weights from superblocks of `length` columns, a multiple of 8. One warp per
/// superblock.
template <class Codes>
__global__ void __launch_bounds__(32 * superblock_rows_warps, 8)
    superblock_rows_kernel(f16* rows, SuperblockWeights w, int length) {
  auto& memory = *reinterpret_cast<SuperblockRowsShared<Codes>*>(dynamic_shared());
  auto& own = memory.fp16[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int superblock = static_cast<int>(blockIdx.x) * superblock_rows_warps + static_cast<int>(threadIdx.x) / 32;
  const auto columns = static_cast<int>(w.layout.tile_columns());
  const int tile_row = superblock / columns;
  const int tile_column = superblock - tile_row * columns;
  pdl_trigger();
  w.prepare<Codes>(memory.table);
  __syncthreads();
  if (tile_row < w.layout.tile_rows()) {
    const uint8_t* codes = w.codes + static_cast<int64_t>(superblock) * Codes::bits * Superblocks::row_bytes;
    FragmentSteps steps = {};
    if (w.inside) load_steps<Codes>(w, tile_row, tile_column, steps);
    unpack_chunks<Codes, 0>(codes, memory.table, steps, w.inside, own);
    unpack_chunks<Codes, 1>(codes, memory.table, steps, w.inside, own);
  }
  __syncwarp();
  pdl_wait();  // the kernel before may still read rows there
  if (tile_row >= w.layout.tile_rows()) return;
#pragma unroll 4
  for (int i = lane; i < Superblocks::size * 8; i += 32) {
    const int row = tile_row * Superblocks::size + i / 8;
    const int column = tile_column * Superblocks::size + i % 8 * 8;
    if (row < w.rows && column < length)
      *reinterpret_cast<uint4*>(rows + static_cast<int64_t>(row) * length + column) =
          *reinterpret_cast<const uint4*>(&own[i / 8][i % 8 * 8]);
  }
}

namespace cuda {

/// Expands superblocks to rows of fp16 weights; columns are a multiple of 8. Returns the epilogue
/// of the product by these rows.
BiasEpilogue<AnyElements> superblock_rows(f16* rows, const ForwardProduct& f, Stream& stream);

/// Expands string blocks to rows of fp16 weights. Returns the epilogue of the product by them.
BiasEpilogue<AnyElements> string_rows(f16* rows, const ForwardProduct& f, Stream& stream);

}  // namespace cuda
}  // namespace nibblenet
