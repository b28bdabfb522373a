#pragma once

#include "kernels/cuda/conv/few_channels_fit.h"
#include "kernels/cuda/gemm/column_sums.cuh"
#include "kernels/cuda/gemm/mma_gradient_tile.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"

// The gradient of a first convolution's weights, whose images have too few channels for tiles of 16
// bytes. A window is `size` runs of size x C neighbouring fp16 values, each of which begins at a
// whole word of the image. So shared memory has the image's rows as matrices of runs: [output
// columns][run], every element once for each window that meets it along the row, but only once down
// the image; a row is used by all output rows that meet it. ldmatrix turns both operands around:
// dw[filter][r, run] = sum over output pixels of dy[pixel][filter] runs[row of pixel +
// r][column][run].

namespace nibblenet {

struct FewChannelsGradient : FewChannelsRuns {
  const f16* x = nullptr;   ///< on 4 bytes
  const f16* dy = nullptr;  ///< [pixels, K], K a multiple of 8, on 16 bytes
  WeightGradient gradient = {};
  int bands = 1;  ///< of an image's output rows
  int rows = 0;   ///< of a band

  using DyTile = TileAlongRows<filters>;
  static_assert(depth == gradient_depth && few_channels_gradient_warps * 32 == gradient_threads);
  __host__ __device__ int units() const { return sizes.n * bands; }
};

/// Output rows of one band, from `first` on, and where they are kept.
struct OutputRows {
  int image, first, end;
  unsigned char* memory;

  __device__ OutputRows(const FewChannelsGradient& g, int unit, unsigned char* storage)
      : image(unit / g.bands), first((unit - image * g.bands) * g.rows), end(first + g.rows), memory(storage) {
    if (end > g.sizes.p) end = g.sizes.p;
  }
  /// Row h of the image, counted from the top padding's.
  __device__ unsigned char* runs(const FewChannelsGradient& g, int h) const {
    return memory + h % g.slots() * g.row_bytes();
  }
  __device__ unsigned char* dy(const FewChannelsGradient& g, int row) const {
    return memory + g.slots() * g.row_bytes() + row % 2 * g.dy_bytes();
  }
};

/// Starts copying rows [h, end) of the image, counted from the padding's. A warp takes every eighth
/// output column, its lanes the words of the run.
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

/// Starts copying 64 filters' dy of an output row.
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

/// A warp's sums of 64 filters and of every eighth tile of columns of dw.
struct FewChannelsSums {
  float d[few_channels_tiles][4][4];
};

/// sums += dy of an output row, transposed, * the runs that it meets.
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

/// sums += dy^T * x over a band. The next output row is on its way while one is multiplied.
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
    __syncthreads();  // this row has arrived
    for (int k = 0; k < g.columns(); k += gradient_depth)
      column_sums.add(of.dy(g, row) + k * Tile::rows * static_cast<int>(sizeof(f16)));
    multiply_row(g, of, row, sums);
    __syncthreads();  // nobody reads it any more
  }
  cp_async_wait<0>();
}

/// dw = dy^T * x, and dbias. Block (x, y) owns 64 filters from 64 x on and every gridDim.y-th band,
/// which is a split of the sums.
__global__ void __launch_bounds__(gradient_threads) few_channels_gradient_kernel(FewChannelsGradient g) {
  unsigned char* memory = dynamic_shared();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int first_filter = static_cast<int>(blockIdx.x) * FewChannelsGradient::DyTile::rows;
  const auto split = static_cast<int>(blockIdx.y);
  // Columns that pad a k-tile, and vectors that pad a run, are never written again.
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
