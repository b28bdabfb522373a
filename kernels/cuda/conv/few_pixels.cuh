#pragma once

#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/conv/few_pixels_pooling.cuh"
#include "kernels/cuda/gemm/split_k.cuh"

// Convolutions of few output pixels, where large tiles would give only a handful of long blocks.
// The tiles here are small, and k is cut twice: between the warps of a block, which multiply
// without barriers, and between blocks (split-K). As in linear/few_rows.cuh, packed codes go from
// memory to registers in the order of the mma fragments and are unpacked there (Marlin, Frantar
// 2024, arXiv 2408.11743). Trellis strings pass through shared memory on the way, where lanes meet
// the words that they share.

namespace nibblenet {

inline constexpr int few_pixels_threads = 32 * few_pixels_warps;
inline constexpr int few_pixels_stages = 2;  ///< of a warp's pixels: one stage is multiplied, the other is in flight
/// Superblocks of a warp in flight. Registers cannot hold two of fp16 values.
template <class Codes>
inline constexpr int few_pixels_depth = std::is_same_v<Codes, HalfCodes> ? 1 : few_pixels_stages;
/// Upper bound of a thread's registers. Where it causes no spills, it leaves room on a
/// multiprocessor for a block of the next linear layer: 256 threads of 72 registers with linear
/// codes (linear/few_rows.cuh). That block then loads its weights before this kernel ends.
template <class Codes>
inline constexpr int few_pixels_registers = (Codes::integers && Codes::bits <= 5) ? 65536 / few_pixels_threads - 72
                                                                                  : 255;
/// Groups of four neighbouring rows of a pixel that a thread stores.
inline constexpr int few_pixels_fours = few_pixels_rows * mma_warp_columns / 4 / few_pixels_threads;

/// Parameters of the kernel: y [N, P, Q, K] from x [N, H, W, C] and packed filters [K, R S C], and
/// fused max pooling where it is asked for. C is a multiple of 64.
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

/// The window of an output pixel: where it begins, and which of its rows and columns are inside the
/// image, and not in the padding.
struct alignas(8) PixelWindow {
  int first;        ///< element of x, channel 0
  unsigned inside;  ///< bit r: row r; bit 16 + s: column s; none where there is no such pixel

  __device__ PixelWindow(const Windows<f16>& windows, int pixel) : first(0), inside(0) {
    const ConvolutionSizes& s = windows.sizes;
    const Windows<f16>::Row row = windows.row(pixel);
    if (row.image == nullptr) return;
    first = static_cast<int>(row.image - windows.x) + (row.h * s.w + row.w) * s.c;
    for (int i = 0; i < s.size; ++i) {
      if (row.h + i >= 0 && row.h + i < s.h) inside |= 1U << i;
      if (row.w + i >= 0 && row.w + i < s.w) inside |= 1U << (few_pixels_largest_window + i);
    }
  }
};

/// Operands in shared memory: the look-up table, each warp's pixels, 64 channels at a time, and
/// each warp's string tile.
template <class Codes>
struct FewPixelsOperands {
  alignas(16) typename Codes::Table table;
  alignas(16) unsigned char pixels[few_pixels_warps][few_pixels_stages][mma_warp_columns * slice_bytes];
};
template <int quarters>
struct FewPixelsOperands<StringCodes<quarters>> : FewPixelsOperands<HalfCodes> {
  alignas(16) unsigned char strings[few_pixels_warps][StringTile<quarters>::bytes];
};

/// Dynamic shared memory of a block: the windows of its pixels and the epilogues of its rows.
/// Beside them lie first the operands, later each warp's sums. The padding spreads the columns of a
/// fragment over the banks.
template <class Codes>
struct FewPixelsShared {
  alignas(16) PixelWindow windows[mma_warp_columns];
  alignas(16) BiasEpilogue<AnyElements>::Row rows[few_pixels_rows];
  union {
    FewPixelsOperands<Codes> operands;
    alignas(16) float sums[few_pixels_warps][mma_warp_columns][few_pixels_rows + 4];
  };
};

/// A lane's part of a superblock: its words.
template <class Codes>
struct LaneCodes {
  uint32_t words[Superblocks::chunks][Codes::bits];

  /// Starts loading superblock `tile_column` of a row.
  __device__ __forceinline__ void load(const SuperblockWeights& w, int tile_row, int tile_column) {
    load_superblock<Codes::bits>(w.codes + (tile_row * w.layout.tile_columns() + tile_column) * w.layout.bytes_each(),
                                 words);
  }
};
/// A lane's part of a string tile: every 32nd vector.
template <int quarters>
struct LaneCodes<StringCodes<quarters>> {
  using Tile = StringTile<quarters>;
  static constexpr int count = (Tile::vectors + 31) / 32;
  uint4 vectors[count];

  static __device__ int vector(int i) { return static_cast<int>(threadIdx.x) % 32 + 32 * i; }
  __device__ __forceinline__ void load(const SuperblockWeights& w, int tile_row, int tile_column) {
    const StringTileSource<quarters> source(w.strings, w.codes, tile_row);
#pragma unroll
    for (int i = 0; i < count; ++i)
      if (vector(i) < Tile::vectors) vectors[i] = load_once_16(source.vector(tile_column, vector(i)));
  }
  /// Stores the vectors in the warp's tile.
  __device__ __forceinline__ void store(unsigned char* tile) const {
#pragma unroll
    for (int i = 0; i < count; ++i)
      if (vector(i) < Tile::vectors) *reinterpret_cast<uint4*>(tile + Tile::place(vector(i))) = vectors[i];
  }
};
/// A lane's part of its warp's superblocks in flight.
template <class Codes>
using FewPixelsCodes = LaneCodes<Codes>[few_pixels_depth<Codes>];

/// Starts copying the input of the block's pixels for superblock `tile_column` of a row: 64
/// channels at one tap. Writes zeros in the padding, and for pixels that do not exist. Called by
/// one warp.
__device__ __forceinline__ void copy_windows(const Windows<f16>& windows,
                                             const PixelWindow (&of_pixels)[mma_warp_columns], int tile_column,
                                             unsigned char* to) {
  constexpr int vectors = slice_bytes / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const ConvolutionSizes& s = windows.sizes;
  const int slices = s.c / slice_channels;
  const int tap = tile_column / slices;
  const int row = tap / s.size;
  const int column = tap - row * s.size;
  const int element = (row * s.w + column) * s.c + (tile_column - tap * slices) * slice_channels + lane % vectors * 8;
#pragma unroll
  for (int i = 0; i < mma_warp_columns * vectors / 32; ++i) {
    const int pixel = lane / vectors + i * (32 / vectors);
    const PixelWindow window = of_pixels[pixel];
    const bool inside = (window.inside >> row & window.inside >> (few_pixels_largest_window + column) & 1U) != 0;
    cp_async_16_cached(to + slice_offset(pixel, lane % vectors), windows.x + (inside ? window.first + element : 0),
                       inside);
  }
}

/// Multiplies a superblock by pixels in shared memory: multiply(chunk, x, first) a chunk, the first
/// or the second of the two that x holds.
template <class Multiply>
__device__ __forceinline__ void multiply_windows(const unsigned char* pixels, Multiply multiply) {
  int position[mma_warp_tiles];
#pragma unroll
  for (int tile = 0; tile < mma_warp_tiles; ++tile) position[tile] = 8 * tile + static_cast<int>(threadIdx.x) % 32 / 4;
  uint4 x[mma_warp_tiles];
  load_pixels<0>(pixels, position, x);
  multiply(0, x, true);
  multiply(1, x, false);
  load_pixels<1>(pixels, position, x);
  multiply(2, x, true);
  multiply(3, x, false);
}

/// Sums of a warp's superblocks: tile_column, tile_column + 8, … before `end`, of one row. The
/// first superblocks' codes are in `codes`, or in flight.
template <class Codes>
__device__ __forceinline__ void sum_superblocks(const FewPixels& p, int tile_row, int tile_column, int end,
                                                FewPixelsShared<Codes>& memory, FewPixelsCodes<Codes>& codes,
                                                TileSums& sums) {
  const unsigned warp = threadIdx.x / 32;
  auto& ring = memory.operands.pixels[warp];
  FragmentSteps steps = {};
  if (!are_strings<Codes> && p.weights.inside) load_steps<Codes>(p.weights, tile_row, 0, steps);
  pdl_wait();  // the kernel before made x
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
      auto& own = codes[stage % few_pixels_depth<Codes>];
      if constexpr (are_strings<Codes>) own.store(memory.operands.strings[warp]);
      cp_async_wait<few_pixels_stages - 1>();
      __syncwarp();  // what the other lanes copied or stored is there
      multiply_windows(ring[stage], [&](int chunk, const uint4(&x)[mma_warp_tiles], bool first) {
        if constexpr (are_strings<Codes>) {
          uint32_t a[4][4];
          StringFragments<Codes::quarters>().unpack(memory.operands.strings[warp], chunk, a);
          multiply_fragments(a, x, first, sums);
        } else {
          multiply_chunk<Codes>(own.words[chunk], x, first, memory.operands.table, steps, p.weights.inside, sums);
        }
      });
      __syncwarp();  // all lanes are done reading these pixels
      const int next_codes = tile_column + few_pixels_depth<Codes> * few_pixels_warps;
      if (next_codes < end) own.load(p.weights, tile_row, next_codes);
      const int next = tile_column + few_pixels_stages * few_pixels_warps;
      if (next < end) copy_windows(p.windows, memory.windows, next, ring[stage]);
      cp_async_commit();
      tile_column += few_pixels_warps;
    }
  }
  cp_async_wait<0>();
}

/// Position of a thread's results in a block's tile.
struct FewPixelsPlace {
  int column, row;
  __device__ explicit FewPixelsPlace(int four)
      : column((four * few_pixels_threads + static_cast<int>(threadIdx.x)) / (few_pixels_rows / 4)),
        row(static_cast<int>(threadIdx.x) % (few_pixels_rows / 4) * 4) {}
};

__device__ __forceinline__ void add_to(float4& sum, const float4& other) {
  sum = {sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w};
}

/// A thread's sums over all warps, added in the order of the warps. All threads.
template <class Codes>
__device__ __forceinline__ void add_up_warps(FewPixelsShared<Codes>& memory, TileSums& sums,
                                             float4 (&total)[few_pixels_fours]) {
  __syncthreads();  // all threads are done reading the operands
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

/// Split-K reduction: stores a thread's sums of this split. The last block to arrive adds the sums
/// of all splits in their order; only there it returns true. All threads.
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

/// Stores four neighbouring rows of a pixel of y. `finish`: their epilogues.
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

/// Convolution of few pixels: y = epilogue(x * w + bias). 256 threads. Block (x, y, z) owns pixels
/// [32 x, 32 x + 32) of the batch, rows [64 y, 64 y + 64) and split z of the superblocks along k.
/// Each warp multiplies every eighth of these superblocks by all pixels of the block, into sums of
/// its own. Warps' sums are added through shared memory, splits through device memory, always in
/// the same order. With pooling, the block that stores the last result of a pooled row computes
/// that row.
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
  FewPixelsCodes<Codes> codes;
#pragma unroll
  for (int stage = 0; stage < few_pixels_depth<Codes>; ++stage)
    if (const int first = tile_column + stage * few_pixels_warps; first < end)
      codes[stage].load(p.weights, tile_row, first);
  p.weights.prepare<Codes>(memory.operands.table);
  if (thread < mma_warp_columns) memory.windows[thread] = PixelWindow(p.windows, first_pixel + thread);
  if (thread >= few_pixels_threads - few_pixels_rows) {
    const int of_block = thread - (few_pixels_threads - few_pixels_rows);
    const int row = tile_row * few_pixels_rows + of_block;
    memory.rows[of_block] = p.epilogue.of_row(row < p.epilogue.rows ? row : 0);
  }
  __syncthreads();

  TileSums sums = {};
  sum_superblocks<Codes>(p, tile_row, tile_column, end, memory, codes, sums);
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
