#pragma once

#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/conv/few_pixels_pooling.cuh"
#include "kernels/cuda/gemm/split_k.cuh"

// Convolutions of few output pixels: large tiles would be a handful of blocks, each of them long. Here tiles are small,
// and k is cut twice: between the warps of a block, which need no barrier while they multiply, and between blocks.
// After Marlin (Frantar 2024, arXiv 2408.11743), as kernels/cuda/linear/few_rows.cuh: packed codes go from memory to
// registers in the order of the tensor cores' fragments and are unpacked there.

namespace nibblenet {

inline constexpr int few_pixels_threads = 32 * few_pixels_warps;
inline constexpr int few_pixels_stages = 2;  ///< of a warp's pixels: some are multiplied, others are on their way
/// The same of its superblocks. Registers do not hold two of halves.
template <class Codes>
inline constexpr int few_pixels_depth = Codes::bits == 16 ? 1 : few_pixels_stages;
/// A thread's registers, at most. Where nothing is spilled for it, they leave room on a multiprocessor for a block of
/// the linear layer behind (kernels/cuda/linear/few_rows.cuh: 256 threads of 72 registers with linear codes), whose
/// weights are on their way then before this kernel has ended.
template <class Codes>
inline constexpr int few_pixels_registers = (Codes::integers && Codes::bits <= 5) ? 65536 / few_pixels_threads - 72
                                                                                  : 255;
/// Of four neighbouring rows of a pixel, that a thread has of a block's results.
inline constexpr int few_pixels_fours = few_pixels_rows * warp_columns / 4 / few_pixels_threads;

/// One product: y [N, P, Q, K] from x [N, H, W, C], C a multiple of 64, and packed filters [K, R S C]; and, where it is
/// asked for, max pooling of y.
struct FewPixels {
  SuperblockWeights weights = {};    ///< whose steps do not change along k
  bool weights_from_before = false;  ///< the kernel before made them
  Windows<f16> windows;
  BiasResult<AnyElements> result = {};
  bool by_fours;                 ///< halves of y lie so that four rows can be stored at once
  int parts = 1;                 ///< of the superblocks along k, each a block's
  float* partial = nullptr;      ///< [parts, blocks, fours, threads, 4]
  unsigned* arrivals = nullptr;  ///< by block: how many parts are done
  RowPooling pooling = {};
};

/// Dynamic shared memory of a block: its pixels' windows and what its rows' results become; while superblocks are
/// multiplied the look-up table and each warp's pixels, 64 channels at a time, then each warp's sums. The odd end
/// spreads the columns of a fragment over the banks.
template <class Codes>
struct FewPixelsShared {
  struct Operands {
    alignas(16) typename Codes::Table table;
    alignas(16) unsigned char pixels[few_pixels_warps][few_pixels_stages][warp_columns * slice_bytes];
  };
  alignas(16) Windows<f16>::Row windows[warp_columns];
  alignas(16) BiasResult<AnyElements>::Row rows[few_pixels_rows];
  union {
    Operands operands;
    alignas(16) float sums[few_pixels_warps][warp_columns][few_pixels_rows + 4];
  };
};

/// What a lane has in registers of its warp's superblocks that are under way.
template <class Codes>
using FewPixelsWords = uint32_t[few_pixels_depth<Codes>][Superblocks::chunks][Codes::bits];

/// Starts reading the codes of the `across`-th superblock of a row.
template <int bits>
__device__ __forceinline__ void load_codes(const SuperblockWeights& w, int down, int across,
                                           uint32_t (&words)[Superblocks::chunks][bits]) {
  load_superblock<bits>(w.codes + (down * w.layout.across() + across) * w.layout.bytes_each(), words);
}

/// Starts copying what the block's pixels meet in the `across`-th superblock of a row: 64 channels at one tap, zeros in
/// the padding and of pixels that do not exist. A warp.
__device__ __forceinline__ void copy_windows(const Windows<f16>& windows, const Windows<f16>::Row (&rows)[warp_columns],
                                             int across, unsigned char* to) {
  constexpr int pieces = slice_bytes / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int slices = windows.sizes.c / slice;
  const int tap = across / slices;
  const int channel = (across - tap * slices) * slice + lane % pieces * 8;
#pragma unroll
  for (int i = 0; i < warp_columns * pieces / 32; ++i) {
    const int column = lane / pieces + i * (32 / pieces);
    const Windows<f16>::Row row = rows[column];
    const f16* from = row.image != nullptr ? windows.at(row, tap, channel) : nullptr;
    cp_async_16_cached(to + slice_offset(column, lane % pieces), from != nullptr ? from : windows.x, from != nullptr);
  }
}

/// sums += superblock * x, of pixels in shared memory.
template <class Codes>
__device__ __forceinline__ void multiply_windows(const uint32_t (&words)[Superblocks::chunks][Codes::bits],
                                                 const unsigned char* pixels, const typename Codes::Table& table,
                                                 const FragmentSteps& steps, bool with_steps, TileSums& sums) {
  int position[warp_tiles];
#pragma unroll
  for (int tile = 0; tile < warp_tiles; ++tile) position[tile] = 8 * tile + static_cast<int>(threadIdx.x) % 32 / 4;
  uint4 x[warp_tiles];
  load_pixels<0>(pixels, position, x);
  multiply_chunk<Codes>(words[0], x, true, table, steps, with_steps, sums);
  multiply_chunk<Codes>(words[1], x, false, table, steps, with_steps, sums);
  load_pixels<1>(pixels, position, x);
  multiply_chunk<Codes>(words[2], x, true, table, steps, with_steps, sums);
  multiply_chunk<Codes>(words[3], x, false, table, steps, with_steps, sums);
}

/// Sums of a warp's share: superblocks across, across + 8, … before `end` of a row. The codes of the first ones are in
/// `words`, or on their way there.
template <class Codes>
__device__ __forceinline__ void sum_superblocks(const FewPixels& p, int down, int across, int end,
                                                FewPixelsShared<Codes>& memory, FewPixelsWords<Codes>& words,
                                                TileSums& sums) {
  auto& ring = memory.operands.pixels[threadIdx.x / 32];
  FragmentSteps steps = {};
  if (p.weights.inside) load_steps<Codes>(p.weights, down, 0, steps);
  wait_for_kernel_before();  // which made x
#pragma unroll
  for (int stage = 0; stage < few_pixels_stages; ++stage) {
    const int first = across + stage * few_pixels_warps;
    if (first < end) copy_windows(p.windows, memory.windows, first, ring[stage]);
    cp_async_commit();
  }
  while (across < end) {
#pragma unroll
    for (int stage = 0; stage < few_pixels_stages; ++stage) {
      if (across >= end) break;
      cp_async_wait<few_pixels_stages - 1>();
      __syncwarp();  // the other lanes' copies have arrived, too
      auto& own = words[stage % few_pixels_depth<Codes>];
      multiply_windows<Codes>(own, ring[stage], memory.operands.table, steps, p.weights.inside, sums);
      __syncwarp();  // nobody reads these pixels any more
      const int next_codes = across + few_pixels_depth<Codes> * few_pixels_warps;
      if (next_codes < end) load_codes(p.weights, down, next_codes, own);
      const int next = across + few_pixels_stages * few_pixels_warps;
      if (next < end) copy_windows(p.windows, memory.windows, next, ring[stage]);
      cp_async_commit();
      across += few_pixels_warps;
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

/// Leaves a thread's sums of a part in memory. The block that arrives last gets the sums of all parts, added up in
/// their order, and true. All threads.
__device__ __forceinline__ bool add_up_parts(const FewPixels& p, int part, float4 (&total)[few_pixels_fours]) {
  const int64_t blocks = static_cast<int64_t>(gridDim.x) * gridDim.y;
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const auto sums_of = [&](int of_part) {
    return reinterpret_cast<float4*>(p.partial) + (of_part * blocks + block) * few_pixels_fours * few_pixels_threads +
           threadIdx.x;
  };
#pragma unroll
  for (int i = 0; i < few_pixels_fours; ++i) sums_of(part)[i * few_pixels_threads] = total[i];
  if (!arrives_last(p.arrivals[block], p.parts)) return false;
#pragma unroll
  for (float4& sum : total) sum = {};
#pragma unroll 4
  for (int of_part = 0; of_part < p.parts; ++of_part)
#pragma unroll
    for (int i = 0; i < few_pixels_fours; ++i) add_to(total[i], __ldcg(sums_of(of_part) + i * few_pixels_threads));
  return true;
}

/// Four neighbouring rows of a pixel of y. `finish`: what becomes of their sums.
__device__ __forceinline__ void store_four(const FewPixels& p, int row, int pixel,
                                           const BiasResult<AnyElements>::Row* finish, const float4& sum) {
  if (pixel >= p.result.columns) return;
  const float value[4] = {finish[0](sum.x), finish[1](sum.y), finish[2](sum.z), finish[3](sum.w)};
  const int64_t first = static_cast<int64_t>(pixel) * p.result.rows + row;
  if (p.by_fours) {
    if (row < p.result.rows)
      *reinterpret_cast<uint2*>(static_cast<f16*>(p.result.y.data) + first) = {pair_of_halves(value[0], value[1]),
                                                                               pair_of_halves(value[2], value[3])};
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e)
    if (row + e < p.result.rows) store_element(p.result.y, first + e, value[e]);
}

/// y = epilogue(x * w + bias). 256 threads; block (x, y, z) owns pixels [32 x, 32 x + 32) of all images', rows
/// [64 y, 64 y + 64) and part z of the superblocks along k. A warp multiplies every eighth of these by all pixels of
/// the block, with sums of its own. They are added up through shared memory, the parts through device memory, always in
/// their order. Whichever block stores the last result that a row of the pooling needs pools it.
template <class Codes>
__global__ void __maxnreg__(few_pixels_registers<Codes>) few_pixels_kernel(FewPixels p) {
  auto& memory = *reinterpret_cast<FewPixelsShared<Codes>*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  const int first_pixel = static_cast<int>(blockIdx.x) * warp_columns;
  const int down = static_cast<int>(blockIdx.y);
  const int part = static_cast<int>(blockIdx.z);
  const auto superblocks = static_cast<int>(p.weights.layout.across());
  const int across = superblocks * part / p.parts + thread / 32;
  const int end = superblocks * (part + 1) / p.parts;

  let_next_kernel_begin();
  if (p.weights_from_before) wait_for_kernel_before();
  FewPixelsWords<Codes> words;
#pragma unroll
  for (int stage = 0; stage < few_pixels_depth<Codes>; ++stage)
    if (const int first = across + stage * few_pixels_warps; first < end)
      load_codes(p.weights, down, first, words[stage]);
  p.weights.prepare<Codes>(memory.operands.table);
  if (thread < warp_columns) memory.windows[thread] = p.windows.row(first_pixel + thread);
  if (thread >= few_pixels_threads - few_pixels_rows) {
    const int of_block = thread - (few_pixels_threads - few_pixels_rows);
    const int row = down * few_pixels_rows + of_block;
    memory.rows[of_block] = p.result.of_row(row < p.result.rows ? row : 0);
  }
  __syncthreads();

  TileSums sums = {};
  sum_superblocks<Codes>(p, down, across, end, memory, words, sums);
  float4 total[few_pixels_fours];
  add_up_warps(memory, sums, total);
  if (p.parts > 1 && !add_up_parts(p, part, total)) return;
#pragma unroll
  for (int i = 0; i < few_pixels_fours; ++i) {
    const FewPixelsPlace place(i);
    store_four(p, down * few_pixels_rows + place.row, first_pixel + place.column, memory.rows + place.row, total[i]);
  }
  if (p.pooling.pool.size > 0) pool_completed_rows(p.pooling, p.windows.sizes, first_pixel, down);
}

}  // namespace nibblenet
