#pragma once

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/im2col.cuh"
#include "kernels/cuda/gemm/mma_fit.h"
#include "kernels/cuda/weights/code_tile.cuh"
#include "kernels/cuda/weights/unpack.cuh"

// Shared-memory tiles of the mma product (gemm/mma.cuh), and a warp's work on them. A block keeps a
// ring of superblocks, and the input of its output pixels, 64 channels (a slice) at a time. An
// im2col matrix would hold each input pixel once per tap; a slice holds it once.

namespace nibblenet {

/// Byte offset of a 16-byte vector in a slice. Vectors are swizzled between neighbouring pixels:
/// eight lanes that read every other vector of two pixels have no bank conflict.
__device__ __forceinline__ int slice_offset(int position, int vector) {
  return position * slice_bytes + ((vector ^ (position & 1)) << 4);
}

/// Starts copying slice `index` of a block's input, with zeros in the padding and outside of x. All
/// threads.
__device__ __forceinline__ void copy_slice(const PixelBlocks& b, const f16* x, int block, int index,
                                           unsigned char* to) {
  constexpr int vectors = slice_bytes / 16;
  const ConvolutionSizes& s = b.sizes;
  const int first_h = block % b.bands * b.row_step * s.stride - s.padding;
  for (int i = static_cast<int>(threadIdx.x); i < b.positions() * vectors; i += static_cast<int>(blockDim.x)) {
    const int position = i / vectors;
    const int vector = i % vectors;
    const int down = position / b.width;
    const int image = down / b.height;
    const int n = block / b.bands * b.images + image;
    const int h = first_h + down - image * b.height;
    const int w = position - down * b.width - s.padding;
    const int channel = index * slice_channels + vector * 8;
    const bool inside = n < s.n && h >= 0 && h < s.h && w >= 0 && w < s.w && channel < s.c;
    const f16* from = inside ? x + ((static_cast<int64_t>(n) * s.h + h) * s.w + w) * s.c + channel : x;
    cp_async_16(to + slice_offset(position, vector), from, inside);
  }
}

/// Calls f.template operator()<Codes>() with the type that unpacks `w`, whose superblocks may be
/// string tiles.
template <class F>
void with_codes_or_strings(const WeightCuda& w, F f) {
  if (w.layout() != WeightLayout::strings) return with_codes(w, f);
  with_quarters(w.view().trellis_quarters, [&]<int quarters>() { f.template operator()<StringCodes<quarters>>(); });
}

/// Scales of a superblock's fragments: they become (code - zero) * step, in fp16.
struct FragmentSteps {
  uint32_t of_row[8];  ///< of each of a lane's rows: step in the lower half, -zero in the upper one
};

/// Step and zero point of a group, as FragmentSteps holds them. A factor keeps steps in the middle
/// of fp16's range. Where all steps are equal, the epilogue applies them and they are 1 here.
template <class Codes>
__device__ __forceinline__ uint32_t packed_steps(const SuperblockWeights& w, int group) {
  const SuperblockSteps& steps = w.steps;
  float zero = 0.0F;
  if constexpr (Codes::integers)
    if (steps.zero_points != nullptr) zero = Codes::zero - static_cast<float>(steps.zero_points[group]);
  return half_bits(steps.differ ? steps.steps.scale(group) * w.step_factor : 1.0F) | half_bits(zero) << 16;
}

/// Loads the scales of superblock `tile_column` of a row.
template <class Codes>
__device__ __forceinline__ void load_steps(const SuperblockWeights& w, int tile_row, int tile_column,
                                           FragmentSteps& to) {
  const RowGroups groups(w.steps, w.rows, tile_row);
  const int before = w.steps.groups_before(tile_column);
#pragma unroll
  for (int i = 0; i < 8; ++i) to.of_row[i] = packed_steps<Codes>(w, groups.first[i] + before);
}

__device__ __forceinline__ void apply_steps(const FragmentSteps& steps, uint32_t (&a)[4][4]) {
  constexpr uint32_t one = 0x3C003C00U;
  constexpr uint32_t minus_zero = 0x80008000U;
#pragma unroll
  for (int row = 0; row < 8; ++row) {
    const uint32_t step = __byte_perm(steps.of_row[row], 0, 0x1010);
    const uint32_t zero = __byte_perm(steps.of_row[row], 0, 0x3232);
#pragma unroll
    for (int r = row % 2; r < 4; r += 2)
      a[row / 2][r] = fma_fp16x2(fma_fp16x2(a[row / 2][r], one, zero), step, minus_zero);
  }
}

/// A warp's sums: d[tile][f] is fragment f of its superblock row, for columns [8 tile, 8 tile + 8).
template <int tiles>
struct FragmentSums {
  float d[tiles][4][4];
};
using TileSums = FragmentSums<mma_warp_tiles>;

/// Column of the e-th sum of a lane's row in a tile, counted from the warp's first.
__device__ __forceinline__ int column_of_sum(int tile, int e) {
  return 8 * tile + static_cast<int>(threadIdx.x) % 4 * 2 + e;
}
/// Calls begin(row) for each row of the superblock that a lane holds. Calls what begin() returns
/// with (tile, e, sum) for each sum of that row.
template <int tiles, class Begin>
__device__ __forceinline__ void for_each_sum(FragmentSums<tiles>& sums, Begin begin) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    auto use = begin(8 * i + static_cast<int>(threadIdx.x) % 32 / 4);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int e = 0; e < 2; ++e) use(tile, e, sums.d[tile][i / 2][i % 2 * 2 + e]);
  }
}

/// Loads words [first, first + count) of a lane's codes from a superblock in shared memory.
template <int first, int count>
__device__ __forceinline__ void load_words(const unsigned char* codes, uint32_t (&words)[count]) {
  constexpr int begin = first / 4;
  constexpr int end = (first + count + 3) / 4;
#pragma unroll
  for (int i = begin; i < end; ++i) {
    const uint4 v = *reinterpret_cast<const uint4*>(codes + i * Superblocks::row_bytes + threadIdx.x % 32 * 16);
    const uint32_t four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (4 * i + e >= first && 4 * i + e < first + count) words[4 * i + e - first] = four[e];
  }
}

/// Loads a lane's part of x for half `pair` of a superblock's chunks: 16 bytes of each column hold
/// two chunks. `position`: of the lane's column of each tile, at the tap.
template <int pair, int tiles>
__device__ __forceinline__ void load_pixels(const unsigned char* pixels, const int (&position)[tiles],
                                            uint4 (&x)[tiles]) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int vector = static_cast<int>(threadIdx.x) % 4 * 2 + pair;
    x[tile] = *reinterpret_cast<const uint4*>(pixels + slice_offset(position[tile], vector));
  }
}

/// sums += chunk * x, of a chunk's fragments. `first`: it is the first of the two that x holds.
template <int tiles>
__device__ __forceinline__ void multiply_fragments(const uint32_t (&a)[4][4], const uint4 (&x)[tiles], bool first,
                                                   FragmentSums<tiles>& sums) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t b[2] = {first ? x[tile].x : x[tile].z, first ? x[tile].y : x[tile].w};
#pragma unroll
    for (int f = 0; f < 4; ++f) mma_16816(sums.d[tile][f], a[f], b);
  }
}

/// sums += chunk * x. `first`: the chunk is the first of the two that x holds.
template <class Codes>
__device__ __forceinline__ void multiply_chunk(const uint32_t (&chunk)[Codes::bits], const uint4 (&x)[mma_warp_tiles],
                                               bool first, const typename Codes::Table& table,
                                               const FragmentSteps& steps, bool with_steps, TileSums& sums) {
  uint32_t a[4][4];
  Codes{}.decode(chunk, table, a);
  if (with_steps) apply_steps(steps, a);
  multiply_fragments(a, x, first, sums);
}

/// sums += half `pair` of a superblock's chunks * x.
template <class Codes, int pair>
__device__ __forceinline__ void multiply_chunks(const unsigned char* codes, const unsigned char* pixels,
                                                const int (&position)[mma_warp_tiles],
                                                const typename Codes::Table& table, const FragmentSteps& steps,
                                                bool with_steps, TileSums& sums) {
  uint32_t words[2 * Codes::bits];
  load_words<2 * pair * Codes::bits>(codes, words);
  uint4 x[mma_warp_tiles];
  load_pixels<pair>(pixels, position, x);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t chunk[Codes::bits];
#pragma unroll
    for (int j = 0; j < Codes::bits; ++j) chunk[j] = words[i * Codes::bits + j];
    multiply_chunk<Codes>(chunk, x, i == 0, table, steps, with_steps, sums);
  }
}

/// sums += superblock * x. `codes`: the warp's superblock, `pixels`: the slice, `position`: of the
/// lane's column of each tile, at the tap. `with_steps`: fragments are multiplied by `steps`.
template <class Codes>
__device__ __forceinline__ void multiply_superblock(const unsigned char* codes, const unsigned char* pixels,
                                                    const int (&position)[mma_warp_tiles],
                                                    const typename Codes::Table& table, const FragmentSteps& steps,
                                                    bool with_steps, TileSums& sums) {
  multiply_chunks<Codes, 0>(codes, pixels, position, table, steps, with_steps, sums);
  multiply_chunks<Codes, 1>(codes, pixels, position, table, steps, with_steps, sums);
}

}  // namespace nibblenet
