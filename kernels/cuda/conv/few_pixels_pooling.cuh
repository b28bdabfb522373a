#pragma once

#include "kernels/cuda/conv/few_pixels_fit.h"
#include "kernels/cuda/gemm/mma_tile.cuh"

// Max pooling of a product's results by the kernel that makes them, where its tiles are smaller
// than windows' rows: results go to memory, and the block that completes what a row of windows
// needs pools it, out of the L2 cache. A maximum does not depend on the order, and so the bits are
// the same whichever block that is.

namespace nibblenet {

/// Rows of windows that 32 pixels can meet, those of several images included.
inline constexpr int row_pooling_rows = mma_warp_columns + 2 * few_pixels_largest_pool;

/// Of results [N, P, Q, K], K a multiple of 8, in tiles of `mma_warp_columns` pixels.
struct RowPooling {
  MaxPooling pool = {};            ///< without padding; a size of 0: none
  const f16* results = nullptr;    ///< on 16 bytes
  f16* y = nullptr;                ///< [N, pool.p, pool.q, K], on 16 bytes
  bool flat = false;               ///< [N, K, pool.p, pool.q] it is, as PyTorch flattens it
  unsigned* semaphores = nullptr;  ///< by superblock row, image and row of y: how many tiles are done

  /// A row of y, all images' counted on.
  struct Row {
    int first_pixel;  ///< of the results that it needs
    int end_pixel;
    int tiles;  ///< that these lie in
  };
  __device__ Row row(const ConvolutionSizes& s, int index) const {
    const int image = index / pool.p;
    const int first = (image * s.p + (index - image * pool.p) * pool.stride) * s.q;
    const int end = first + pool.size * s.q;
    return {first, end, (end - 1) / mma_warp_columns - first / mma_warp_columns + 1};
  }
  /// The first row of y that needs a pixel, or what comes behind it; and the last one that does, or
  /// what came before.
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

/// Of the rows that a tile's pixels meet, those which this block is the last one to bring results
/// for.
struct CompletedRows {
  bool here[row_pooling_rows];
};

__device__ __forceinline__ void max_of_eight(uint4& of, const uint4& other) {
  of = {max_fp16x2(of.x, other.x), max_fp16x2(of.y, other.y), max_fp16x2(of.z, other.z), max_fp16x2(of.w, other.w)};
}

/// Stores eight channels, from `channel` on, of a pixel of y.
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

/// A row of y, 64 channels from `channel` on: eight of them of one pixel a thread. All threads.
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

/// By all threads, behind what they have stored of the tile of 32 pixels from `first_pixel` on and
/// 64 channels from 64 `tile_row` on: pools the rows that need nothing any more.
__device__ __forceinline__ void pool_completed_rows(const RowPooling& pooling, const ConvolutionSizes& s,
                                                    int first_pixel, int tile_row) {
  const int end_pixel = first_pixel + mma_warp_columns < s.outputs() ? first_pixel + mma_warp_columns : s.outputs();
  const int first = pooling.first_row(s, first_pixel);
  const int rows = pooling.last_row(s, end_pixel - 1) - first + 1;
  auto& completed = shared<CompletedRows>();
  __threadfence();  // what was stored is seen by whoever sees the count
  __syncthreads();
  if (const auto thread = static_cast<int>(threadIdx.x); thread < rows) {
    unsigned& semaphores = pooling.semaphores[tile_row * s.n * pooling.pool.p + first + thread];
    const auto tiles = static_cast<unsigned>(pooling.row(s, first + thread).tiles);
    completed.here[thread] = atomicAdd(&semaphores, 1U) == tiles - 1U;
    if (completed.here[thread]) semaphores = 0;  // for the next product
  }
  __syncthreads();
  __threadfence();
  for (int i = 0; i < rows; ++i)
    if (completed.here[i]) pool_row(pooling, s, first + i, tile_row * Superblocks::size);
}

}  // namespace nibblenet
