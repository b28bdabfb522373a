#pragma once

#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/gemm/mma_tile.cuh"
#include "kernels/cuda/gemm/split_k.cuh"

// Fused max pooling for tiles that are smaller than a row of windows. Results go to memory. The
// block that stores the last result of a pooled row then pools it, from the L2 cache. The bits do
// not depend on which block that is: a maximum does not depend on the order.

namespace nibblenet {

/// Pooled rows that 32 pixels can belong to, across images.
inline constexpr int row_pooling_rows = mma_warp_columns + 2 * few_pixels_largest_pool;

/// Pooling of results [N, P, Q, K], K a multiple of 8, computed in tiles of `mma_warp_columns`
/// pixels.
struct RowPooling {
  MaxPooling pool = {};            ///< without padding; a size of 0: none
  const f16* results = nullptr;    ///< on 16 bytes
  f16* y = nullptr;                ///< [N, pool.p, pool.q, K], on 16 bytes
  bool flat = false;               ///< [N, K, pool.p, pool.q] it is, as PyTorch flattens it
  unsigned* semaphores = nullptr;  ///< by superblock row, image and row of y: how many tiles are done

  /// A row of y, numbered through all images.
  struct Row {
    int first_pixel;  ///< of its windows
    int end_pixel;
    int tiles;  ///< that hold these pixels
  };
  __device__ Row row(const ConvolutionSizes& s, int index) const {
    const int image = index / pool.p;
    const int first = (image * s.p + (index - image * pool.p) * pool.stride) * s.q;
    const int end = first + pool.size * s.q;
    return {first, end, (end - 1) / mma_warp_columns - first / mma_warp_columns + 1};
  }
  /// The first and the last row of y whose windows hold a pixel. Pixels outside every window get
  /// the next row, and the row before.
  __device__ int first_row(const ConvolutionSizes& s, int pixel) const {
    const int image = pixel / (s.p * s.q);
    const int h = pixel / s.q - image * s.p;
    const int row = h < pool.size ? 0 : (h - pool.size) / pool.stride + 1;
    return image * pool.p + (row < pool.p ? row : pool.p);
  }
  __device__ int last_row(const ConvolutionSizes& s, int pixel) const {
    const int image = pixel / (s.p * s.q);
    const int row = (pixel / s.q - image * s.p) / pool.stride;
    return image * pool.p + (row < pool.p ? row : pool.p - 1);
  }
};

/// Which rows of a tile this block completes: it stored their last result.
struct CompletedRows {
  bool here[row_pooling_rows];
};

__device__ __forceinline__ void max_of_eight(uint4& of, const uint4& other) {
  of = {max_fp16x2(of.x, other.x), max_fp16x2(of.y, other.y), max_fp16x2(of.z, other.z), max_fp16x2(of.w, other.w)};
}

/// Stores eight channels, from `channel` on, of one pixel of y.
__device__ __forceinline__ void store_pooled(const RowPooling& pooling, int channels, int row, int column, int channel,
                                             const uint4& eight) {
  if (!pooling.flat) {
    const int64_t pixel = static_cast<int64_t>(row) * pooling.pool.q + column;
    *reinterpret_cast<uint4*>(pooling.y + pixel * channels + channel) = eight;
    return;
  }
  const int image = row / pooling.pool.p;
  const int pixels = pooling.pool.p * pooling.pool.q;
  f16* y = pooling.y + (static_cast<int64_t>(image) * channels + channel) * pixels +
           (row - image * pooling.pool.p) * pooling.pool.q + column;
  const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int e = 0; e < 8; ++e) y[e * pixels].bits = static_cast<uint16_t>(pairs[e / 2] >> e % 2 * 16);
}

/// Pools a row of y for 64 channels from `channel` on, eight channels of a pixel per thread. All
/// threads.
__device__ __forceinline__ void pool_row(const RowPooling& pooling, const ConvolutionSizes& s, int row, int channel) {
  constexpr int vectors = Superblocks::size / 8;
  const f16* results = pooling.results + static_cast<int64_t>(pooling.row(s, row).first_pixel) * s.k;
  for (int i = static_cast<int>(threadIdx.x); i < pooling.pool.q * vectors; i += static_cast<int>(blockDim.x)) {
    const int column = i / vectors;
    const int eight = channel + i % vectors * 8;
    if (eight >= s.k) continue;
    const auto at = [&](int r, int c) {
      return reinterpret_cast<const uint4*>(results + (r * s.q + column * pooling.pool.stride + c) * s.k + eight);
    };
    uint4 largest = __ldcg(at(0, 0));
    for (int r = 0; r < pooling.pool.size; ++r)
#pragma unroll 3
      for (int c = 0; c < pooling.pool.size; ++c) max_of_eight(largest, __ldcg(at(r, c)));
    store_pooled(pooling, s.k, row, column, eight, largest);
  }
}

/// Counts a stored tile, and pools the rows that it completes. The tile is 32 pixels from
/// `first_pixel` on, and 64 channels from 64 `tile_row` on. All threads, after their stores.
__device__ __forceinline__ void pool_completed_rows(const RowPooling& pooling, const ConvolutionSizes& s,
                                                    int first_pixel, int tile_row) {
  const int end_pixel = first_pixel + mma_warp_columns < s.outputs() ? first_pixel + mma_warp_columns : s.outputs();
  const int first = pooling.first_row(s, first_pixel);
  const int rows = pooling.last_row(s, end_pixel - 1) - first + 1;
  auto& completed = shared<CompletedRows>();
  __syncthreads();
  if (const auto thread = static_cast<int>(threadIdx.x); thread < rows)
    completed.here[thread] = count_arrival(pooling.semaphores[tile_row * s.n * pooling.pool.p + first + thread],
                                           pooling.row(s, first + thread).tiles);
  __syncthreads();
  for (int i = 0; i < rows; ++i)
    if (completed.here[i]) pool_row(pooling, s, first + i, tile_row * Superblocks::size);
}

}  // namespace nibblenet
