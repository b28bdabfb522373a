#pragma once

#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/conv/few_pixels_pooling.cuh"
#include "kernels/cuda/gemm/split_k.cuh"

// Convolutions of few output pixels: large tiles would be a handful of blocks, each of them long.
// Here tiles are small, and k is cut twice: between the warps of a block, which need no barrier
// while they multiply, and between blocks. After Marlin (Frantar 2024, arXiv 2408.11743), as
// kernels/cuda/linear/few_rows.cuh: packed codes go from memory to registers in the order of the
// tensor cores' fragments and are unpacked there.

namespace nibblenet {

inline constexpr int few_pixels_threads = 32 * few_pixels_warps;
inline constexpr int few_pixels_stages = 2;  ///< of a warp's pixels: some are multiplied, others are on their way
/// The same of its superblocks. Registers do not hold two of fp16 values.
template <class Codes>
inline constexpr int few_pixels_depth = Codes::bits == 16 ? 1 : few_pixels_stages;
/// A thread's registers, at most. Where nothing is spilled for it, they leave room on a
/// multiprocessor for a block of the linear layer behind (kernels/cuda/linear/few_rows.cuh: 256
/// threads of 72 registers with linear codes), whose weights are on their way then before this
/// kernel has ended.
template <class Codes>
inline constexpr int few_pixels_registers = (Codes::integers && Codes::bits <= 5) ? 65536 / few_pixels_threads - 72
                                                                                  : 255;
/// Of four neighbouring rows of a pixel, that a thread has of a block's results.
inline constexpr int few_pixels_fours = few_pixels_rows * mma_warp_columns / 4 / few_pixels_threads;

/// One product: y [N, P, Q, K] from x [N, H, W, C], C a multiple of 64, and packed filters [K, R S
/// C]; and, where it is asked for, max pooling of y.
struct FewPixels {
  SuperblockWeights weights = {};    ///< whose steps do not change along k
  bool weights_from_before = false;  ///< the kernel before made them
  Windows<f16> windows;
  BiasEpilogue<AnyElements> epilogue = {};
  bool by_fours;                   ///< fp16 values of y lie so that four rows can be stored at once
  int splits = 1;                  ///< of the superblocks along k, each a block's
  float* partial = nullptr;        ///< [splits, blocks, fours, threads, 4]
  unsigned* semaphores = nullptr;  ///< by block: how many splits are done
  RowPooling pooling = {};
};

/// Dynamic shared memory of a block: its pixels' windows and what its rows' results become; while
/// superblocks are multiplied the look-up table and each warp's pixels, 64 channels at a time, then
/// each warp's sums. The odd end spreads the columns of a fragment over the banks.
template <class Codes>
struct FewPixelsShared {
  struct Operands {
    alignas(16) typename Codes::Table table;
    alignas(16) unsigned char pixels[few_pixels_warps][few_pixels_stages][mma_warp_columns * slice_bytes];
  };
  alignas(16) Windows<f16>::Row windows[mma_warp_columns];
  alignas(16) BiasEpilogue<AnyElements>::Row rows[few_pixels_rows];
  union {
    Operands operands;
    alignas(16) float sums[few_pixels_warps][mma_warp_columns][few_pixels_rows + 4];
  };
};

/// What a lane has in registers of its warp's superblocks that are under way.
template <class Codes>
using FewPixelsWords = uint32_t[few_pixels_depth<Codes>][Superblocks::chunks][Codes::bits];

/// Starts reading the codes of the `tile_column`-th superblock of a row.
template <int bits>
__device__ __forceinline__ void load_codes(const SuperblockWeights& w, int tile_row, int tile_column,
                                           uint32_t (&words)[Superblocks::chunks][bits]) {
  load_superblock<bits>(w.codes + (tile_row * w.layout.tile_columns() + tile_column) * w.layout.bytes_each(), words);
}

/// Starts copying what the block's pixels meet in the `tile_column`-th superblock of a row: 64
/// channels at one tap, zeros in the padding and of pixels that do not exist. A warp.
__device__ __forceinline__ void copy_windows(const Windows<f16>& windows,
                                             const Windows<f16>::Row (&rows)[mma_warp_columns], int tile_column,
                                             unsigned char* to) {
  constexpr int vectors = slice_bytes / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int slices = windows.sizes.c / slice_channels;
  const int tap = tile_column / slices;
  const int channel = (tile_column - tap * slices) * slice_channels + lane % vectors * 8;
#pragma unroll
  for (int i = 0; i < mma_warp_columns * vectors / 32; ++i) {
    const int column = lane / vectors + i * (32 / vectors);
    const Windows<f16>::Row row = rows[column];
    const f16* from = row.image != nullptr ? windows.at(row, tap, channel) : nullptr;
    cp_async_16_cached(to + slice_offset(column, lane % vectors), from != nullptr ? from : windows.x, from != nullptr);
  }
}

/// sums += superblock * x, of pixels in shared memory.
template <class Codes>
__device__ __forceinline__ void multiply_windows(const uint32_t (&words)[Superblocks::chunks][Codes::bits],
                                                 const unsigned char* pixels, const typename Codes::Table& table,
                                                 const FragmentSteps& steps, bool with_steps, TileSums& sums) {
  int position[mma_warp_tiles];
#pragma unroll
  for (int tile = 0; tile < mma_warp_tiles; ++tile) position[tile] = 8 * tile + static_cast<int>(threadIdx.x) % 32 / 4;
  uint4 x[mma_warp_tiles];
  load_pixels<0>(pixels, position, x);
  multiply_chunk<Codes>(words[0], x, true, table, steps, with_steps, sums);
  multiply_chunk<Codes>(words[1], x, false, table, steps, with_steps, sums);
  load_pixels<1>(pixels, position, x);
  multiply_chunk<Codes>(words[2], x, true, table, steps, with_steps, sums);
  multiply_chunk<Codes>(words[3], x, false, table, steps, with_steps, sums);
}

/// Sums of a warp's share: superblocks tile_column, tile_column + 8, … before `end` of a row. The
/// codes of the first ones are in `words`, or on their way there.
template <class Codes>
__device__ __forceinline__ void sum_superblocks(const FewPixels& p, int tile_row, int tile_column, int end,
                                                FewPixelsShared<Codes>& memory, FewPixelsWords<Codes>& words,
                                                TileSums& sums) {
  auto& ring = memory.operands.pixels[threadIdx.x / 32];
  FragmentSteps steps = {};
  if (p.weights.inside) load_steps<Codes>(p.weights, tile_row, 0, steps);
  pdl_wait();  // which made x
#pragma unroll
  for (int stage = 0; stage < few_pixels_stages; ++stage) {
    const int first = tile_column + stage * few_pixels_warps;
    if (first < end) copy_windows(p.windows, memory.windows, first, ring[stage]);
    cp_async_commit();
  }
  while (tile_column < end) {
#pragma unroll
    for (int stage = 0; stage < few_pixels_stages; ++stage) {
      if (tile_column >= end) break;
      cp_async_wait<few_pixels_stages - 1>();
      __syncwarp();  // the other lanes' copies have arrived, too
      auto& own = words[stage % few_pixels_depth<Codes>];
      multiply_windows<Codes>(own, ring[stage], memory.operands.table, steps, p.weights.inside, sums);
      __syncwarp();  // nobody reads these pixels any more
      const int next_codes = tile_column + few_pixels_depth<Codes> * few_pixels_warps;
      if (next_codes < end) load_codes(p.weights, tile_row, next_codes, own);
      const int next = tile_column + few_pixels_stages * few_pixels_warps;
      if (next < end) copy_windows(p.windows, memory.windows, next, ring[stage]);
      cp_async_commit();
      tile_column += few_pixels_warps;
    }
  }
  cp_async_wait<0>();
}

/// Where a thread's results lie in a block's tile.
struct FewPixelsPlace {
  int column, row;
  __device__ explicit FewPixelsPlace(int four)
      : column((four * few_pixels_threads + static_cast<int>(threadIdx.x)) / (few_pixels_rows / 4)),
        row(static_cast<int>(threadIdx.x) % (few_pixels_rows / 4) * 4) {}
};

__device__ __forceinline__ void add_to(float4& sum, const float4& other) {
  sum = {sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w};
}

/// A thread's sums over all warps, the first one first. All threads.
template <class Codes>
__device__ __forceinline__ void add_up_warps(FewPixelsShared<Codes>& memory, TileSums& sums,
                                             float4 (&total)[few_pixels_fours]) {
  __syncthreads();  // nobody reads operands any more
  for_each_sum(sums, [&](int row) {
    auto& of_warp = memory.sums[threadIdx.x / 32];
    return [&of_warp, row](int tile, int e, float sum) { of_warp[column_of_sum(tile, e)][row] = sum; };
  });
  __syncthreads();
#pragma unroll
  for (int i = 0; i < few_pixels_fours; ++i) {
    const FewPixelsPlace place(i);
    total[i] = {};
#pragma unroll
    for (const auto& of_warp : memory.sums)
      add_to(total[i], *reinterpret_cast<const float4*>(&of_warp[place.column][place.row]));
  }
}

/// Leaves a thread's sums of a split in memory. The block that arrives last gets the sums of all
/// splits, added up in their order, and true. All threads.
__device__ __forceinline__ bool add_up_splits(const FewPixels& p, int split, float4 (&total)[few_pixels_fours]) {
  const int64_t blocks = static_cast<int64_t>(gridDim.x) * gridDim.y;
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const auto sums_of = [&](int of_split) {
    return reinterpret_cast<float4*>(p.partial) + (of_split * blocks + block) * few_pixels_fours * few_pixels_threads +
           threadIdx.x;
  };
#pragma unroll
  for (int i = 0; i < few_pixels_fours; ++i) sums_of(split)[i * few_pixels_threads] = total[i];
  if (!arrives_last(p.semaphores[block], p.splits)) return false;
#pragma unroll
  for (float4& sum : total) sum = {};
#pragma unroll 4
  for (int of_split = 0; of_split < p.splits; ++of_split)
#pragma unroll
    for (int i = 0; i < few_pixels_fours; ++i) add_to(total[i], __ldcg(sums_of(of_split) + i * few_pixels_threads));
  return true;
}

/// Four neighbouring rows of a pixel of y. `finish`: what becomes of their sums.
__device__ __forceinline__ void store_four(const FewPixels& p, int row, int pixel,
                                           const BiasEpilogue<AnyElements>::Row* finish, const float4& sum) {
  if (pixel >= p.epilogue.columns) return;
  const float value[4] = {finish[0](sum.x), finish[1](sum.y), finish[2](sum.z), finish[3](sum.w)};
  const int64_t first = static_cast<int64_t>(pixel) * p.epilogue.rows + row;
  if (p.by_fours) {
    if (row < p.epilogue.rows)
      *reinterpret_cast<uint2*>(static_cast<f16*>(p.epilogue.y.data) + first) = {pair_of_fp16(value[0], value[1]),
                                                                                 pair_of_fp16(value[2], value[3])};
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e)
    if (row + e < p.epilogue.rows) store_element(p.epilogue.y, first + e, value[e]);
}

/// y = epilogue(x * w + bias). 256 threads; block (x, y, z) owns pixels [32 x, 32 x + 32) of all
/// images', rows [64 y, 64 y + 64) and split z of the superblocks along k. A warp multiplies every
/// eighth of these by all pixels of the block, with sums of its own. They are added up through
/// shared memory, the splits through device memory, always in their order. Whichever block stores
/// the last result that a row of the pooling needs pools it.
template <class Codes>
__global__ void __maxnreg__(few_pixels_registers<Codes>) few_pixels_kernel(FewPixels p) {
  auto& memory = *reinterpret_cast<FewPixelsShared<Codes>*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  const int first_pixel = static_cast<int>(blockIdx.x) * mma_warp_columns;
  const int tile_row = static_cast<int>(blockIdx.y);
  const int split = static_cast<int>(blockIdx.z);
  const auto superblocks = static_cast<int>(p.weights.layout.tile_columns());
  const int tile_column = superblocks * split / p.splits + thread / 32;
  const int end = superblocks * (split + 1) / p.splits;

  pdl_trigger();
  if (p.weights_from_before) pdl_wait();
  FewPixelsWords<Codes> words;
#pragma unroll
  for (int stage = 0; stage < few_pixels_depth<Codes>; ++stage)
    if (const int first = tile_column + stage * few_pixels_warps; first < end)
      load_codes(p.weights, tile_row, first, words[stage]);
  p.weights.prepare<Codes>(memory.operands.table);
  if (thread < mma_warp_columns) memory.windows[thread] = p.windows.row(first_pixel + thread);
  if (thread >= few_pixels_threads - few_pixels_rows) {
    const int of_block = thread - (few_pixels_threads - few_pixels_rows);
    const int row = tile_row * few_pixels_rows + of_block;
    memory.rows[of_block] = p.epilogue.of_row(row < p.epilogue.rows ? row : 0);
  }
  __syncthreads();

  TileSums sums = {};
  sum_superblocks<Codes>(p, tile_row, tile_column, end, memory, words, sums);
  float4 total[few_pixels_fours];
  add_up_warps(memory, sums, total);
  if (p.splits > 1 && !add_up_splits(p, split, total)) return;
#pragma unroll
  for (int i = 0; i < few_pixels_fours; ++i) {
    const FewPixelsPlace place(i);
    store_four(p, tile_row * few_pixels_rows + place.row, first_pixel + place.column, memory.rows + place.row,
               total[i]);
  }
  if (p.pooling.pool.size > 0) pool_completed_rows(p.pooling, p.windows.sizes, first_pixel, tile_row);
}

}  // namespace nibblenet
