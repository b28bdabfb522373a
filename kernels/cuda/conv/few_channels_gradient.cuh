#pragma once

#include "kernels/cuda/conv/few_channels_fit.h"
#include "kernels/cuda/gemm/column_sums.cuh"
#include "kernels/cuda/gemm/mma_gradient_tile.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"

// Weight gradient of a convolution of few channels, such as the first one: C is too small for tiles
// of 16 bytes. A window is `size` runs of size x C neighbouring fp16 values, each of which begins
// at a 4-byte word of the image. Shared memory holds image rows as matrices [output columns][run].
// An element is stored once for each window that holds it along the row, but only once down the
// image: all output rows that read an image row share it. ldmatrix transposes both operands:
// dw[filter][r, run] = sum over output pixels of dy[pixel][filter] runs[row of pixel +
// r][column][run].

namespace nibblenet {

struct FewChannelsGradient : FewChannelsRuns {
  const f16* x = nullptr;   ///< 4-byte aligned
  const f16* dy = nullptr;  ///< [pixels, K], K a multiple of 8, 16-byte aligned
  WeightGradient gradient = {};
  int bands = 1;  ///< of an image's output rows
  int rows = 0;   ///< of a band

  using DyTile = TileAlongRows<filters>;
  static_assert(depth == gradient_depth && few_channels_gradient_warps * 32 == gradient_threads);
  __host__ __device__ int units() const { return sizes.n * bands; }
};

/// Output rows of one band, from `first` on, and their buffers in shared memory.
struct OutputRows {
  int image, first, end;
  unsigned char* memory;

  __device__ OutputRows(const FewChannelsGradient& g, int unit, unsigned char* storage)
      : image(unit / g.bands), first((unit - image * g.bands) * g.rows), end(first + g.rows), memory(storage) {
    if (end > g.sizes.p) end = g.sizes.p;
  }
  /// Runs of image row h, which counts the top padding.
  __device__ unsigned char* runs(const FewChannelsGradient& g, int h) const {
    return memory + h % g.slots() * g.row_bytes();
  }
  __device__ unsigned char* dy(const FewChannelsGradient& g, int row) const {
    return memory + g.slots() * g.row_bytes() + row % 2 * g.dy_bytes();
  }
};

/// Starts copying image rows [h, end), which count the top padding. Each warp takes every eighth
/// output column; its lanes take the words of the run.
__device__ __forceinline__ void copy_runs(const FewChannelsGradient& g, const OutputRows& of, int h, int end) {
  const ConvolutionSizes& s = g.sizes;
  const int row_length = s.w * s.c;
  const int words = (g.run() + 1) / 2;
  for (; h < end; ++h) {
    const int row = h - s.padding;
    const f16* from = g.x + (static_cast<int64_t>(of.image) * s.h + row) * row_length;
    unsigned char* runs = of.runs(g, h);
    for (int column = static_cast<int>(threadIdx.x) / 32; column < s.q; column += gradient_threads / 32)
      for (int word = static_cast<int>(threadIdx.x) % 32; word < words; word += 32) {
        const int element = (column * s.stride - s.padding) * s.c + 2 * word;
        const bool inside = row >= 0 && row < s.h && element >= 0 && element < row_length;
        cp_async_4(runs + column * g.run_bytes() + 4 * word, inside ? from + element : g.x, inside);
      }
  }
}

/// Starts copying dy of 64 filters of an output row.
__device__ __forceinline__ void copy_dy(const FewChannelsGradient& g, const OutputRows& of, int row, int first_filter) {
  const ConvolutionSizes& s = g.sizes;
  using Tile = FewChannelsGradient::DyTile;
  const f16* from = g.dy + (static_cast<int64_t>(of.image) * s.p + row) * s.q * s.k;
  unsigned char* tile = of.dy(g, row);
  const int filter = static_cast<int>(threadIdx.x) % Tile::vectors * 8;
  const bool exists = first_filter + filter < s.k;
  for (int column = static_cast<int>(threadIdx.x) / Tile::vectors; column < s.q;
       column += gradient_threads / Tile::vectors) {
    const f16* source = exists ? from + static_cast<int64_t>(column) * s.k + first_filter + filter : g.dy;
    cp_async_16(tile + Tile::offset(filter, column), source, exists);
  }
}

using FewChannelsColumnSums = ColumnSums<FewChannelsGradient::DyTile, gradient_threads, gradient_depth>;

/// A warp's sums: 64 filters, and every eighth tile of eight columns of dw.
struct FewChannelsSums {
  float d[few_channels_tiles][4][4];
};

/// sums += dy^T of an output row * the runs that it reads.
__device__ __forceinline__ void multiply_row(const FewChannelsGradient& g, const OutputRows& of, int row,
                                             FewChannelsSums& sums) {
  using Tile = FewChannelsGradient::DyTile;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned char* dy = of.dy(g, row);
  const unsigned char* runs[few_channels_tiles];
#pragma unroll
  for (int i = 0; i < few_channels_tiles; ++i) {
    const int tile = warp + i * (gradient_threads / 32), r = tile / g.tiles_of_run();
    runs[i] = of.runs(g, row * g.sizes.stride + r) + (tile - r * g.tiles_of_run()) * 16 + lane * g.run_bytes();
  }
#pragma unroll 1
  for (int k = 0; k < g.columns(); k += gradient_depth) {
    uint32_t a[2][4][4];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int f = 0; f < 4; ++f) Tile::load_a(dy, 16 * f, k + 16 * half, a[half][f]);
#pragma unroll
    for (int i = 0; i < few_channels_tiles; ++i) {
      if (warp + i * (gradient_threads / 32) >= g.tiles()) break;
      uint32_t r[4];  // eight output columns each
      ldmatrix_x4_transposed(r, runs[i] + k * g.run_bytes());
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t b[2] = {r[2 * half], r[2 * half + 1]};
#pragma unroll
        for (int f = 0; f < 4; ++f) mma_16816(sums.d[i][f], a[half][f], b);
      }
    }
  }
}

/// sums += dy^T * x over a band. Copies the next output row while it multiplies the current one.
__device__ __forceinline__ void sum_band(const FewChannelsGradient& g, const OutputRows& of, int first_filter,
                                         FewChannelsSums& sums, FewChannelsColumnSums& column_sums) {
  using Tile = FewChannelsGradient::DyTile;
  const ConvolutionSizes& s = g.sizes;
  copy_runs(g, of, of.first * s.stride, of.first * s.stride + s.size);
  copy_dy(g, of, of.first, first_filter);
  cp_async_commit();
#pragma unroll 1
  for (int row = of.first; row < of.end; ++row) {
    if (row + 1 < of.end) {
      const int end = (row + 1) * s.stride + s.size;
      copy_runs(g, of, end - s.stride, end);
      copy_dy(g, of, row + 1, first_filter);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();  // this row has landed
    for (int k = 0; k < g.columns(); k += gradient_depth)
      column_sums.add(of.dy(g, row) + k * Tile::rows * static_cast<int>(sizeof(f16)));
    multiply_row(g, of, row, sums);
    __syncthreads();  // all threads are done reading it
  }
  cp_async_wait<0>();
}

/// Weight gradient: dw = dy^T * x, and dbias. Block (x, y) owns 64 filters from 64 x on and the
/// bands y, y + gridDim.y, and so on, which are one split of the sums.
__global__ void __launch_bounds__(gradient_threads) few_channels_gradient_kernel(FewChannelsGradient g) {
  unsigned char* memory = dynamic_shared();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int first_filter = static_cast<int>(blockIdx.x) * FewChannelsGradient::DyTile::rows;
  const auto split = static_cast<int>(blockIdx.y);
  // Zeros for the columns that pad a k-tile and the vectors that pad a run: no copy writes them.
  for (int i = thread * 16; i < g.shared_bytes(); i += gradient_threads * 16)
    *reinterpret_cast<uint4*>(memory + i) = {};
  __syncthreads();

  FewChannelsSums sums = {};
  FewChannelsColumnSums column_sums;
  for (int unit = split; unit < g.units(); unit += static_cast<int>(gridDim.y))
    sum_band(g, OutputRows(g, unit, memory), first_filter, sums, column_sums);

  column_sums.finish(memory, [&](int i, float sum) { g.gradient.store_bias(split, first_filter + i, sum); });
#pragma unroll
  for (int i = 0; i < few_channels_tiles; ++i) {
    const int tile = thread / 32 + i * (gradient_threads / 32), r = tile / g.tiles_of_run();
    if (tile >= g.tiles()) break;
#pragma unroll
    for (int f = 0; f < 4; ++f)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int filter = first_filter + 16 * f + e / 2 * 8 + lane / 4;
        const int along = (tile - r * g.tiles_of_run()) * 8 + lane % 4 * 2 + e % 2;
        if (filter < g.sizes.k && along < g.run())
          g.gradient.store(split, filter, r * g.run() + along, sums.d[i][f][e]);
      }
  }
}

}  // namespace nibblenet
