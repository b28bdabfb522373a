#pragma once

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/mma_fit.h"
#include "kernels/cuda/gemm/product_case.h"

// Fit of conv/few_pixels.cuh, and the tiling of its products.

namespace nibblenet {

inline constexpr int few_pixels_warps = 8;  ///< of a block, which take superblocks of the same rows in turn
inline constexpr int few_pixels_rows = Superblocks::size;  ///< of y that a block owns, for its columns
inline constexpr int few_pixels_largest_window = 16;       ///< of the convolution
inline constexpr int few_pixels_largest_cluster = 8;       ///< blocks: what every GPU that has clusters allows
/// Columns (output pixels) of a block. With fused max pooling: most results of a tile. AlexNet's
/// tiles are 5 x 7 results, of 2 x 3 windows; beside a large look-up table there is room for 5 x 5.
constexpr int few_pixels_columns(bool pools, int table_bytes) {
  return pools && table_bytes <= 16 << 10 ? 36 : mma_warp_columns;
}

/// Tiles of a product with fused max pooling: rectangles of results that hold whole windows of one
/// image.
struct PooledTiles {
  MaxPooling pool = {};      ///< without padding
  int p = 0, q = 0;          ///< rows and columns of windows in a tile; 0: not even one window fits
  int down = 0, across = 0;  ///< tiles of an image

  PooledTiles() = default;
  /// The tiling with the fewest tiles, and of these with the fewest results, at most `most` each.
  PooledTiles(const MaxPooling& pooling, int most);

  constexpr int height() const { return (p - 1) * pool.stride + pool.size; }  ///< results
  constexpr int width() const { return (q - 1) * pool.stride + pool.size; }
  constexpr int of_image() const { return down * across; }
};

/// Blocks of a product: tiles of y, times the splits of k. Each split gives every warp at least one
/// superblock.
struct FewPixelsBlocks {
  int64_t columns;
  int64_t rows;
  int splits;

  explicit FewPixelsBlocks(const ConvolutionSizes& s)
      : columns(ceil_div(int64_t{s.outputs()}, mma_warp_columns)),
        rows(ceil_div(s.k, few_pixels_rows)),
        splits(split_k::few_pixels.splits(
            count(), ceil_div(ceil_div(int64_t{s.length()}, Superblocks::size), few_pixels_warps))) {}
  /// With fused max pooling. The splits are those without, so that sums have the same bits.
  FewPixelsBlocks(const ConvolutionSizes& s, const PooledTiles& tiles) : FewPixelsBlocks(s) {
    columns = int64_t{s.n} * tiles.of_image();
  }

  int64_t count() const { return columns * rows; }
};

namespace few_pixels {

/// Whether the kernel reads the weights in place: superblocks whose scales do not change along k,
/// or string blocks. Other weights are first expanded to superblocks of fp16 values in the
/// workspace.
bool multiplies_in_place(const WeightTraits& weight);
/// Requires a convolution of fp16 activations by windows of at most 16 x 16, C a multiple of 64,
/// and 16-byte aligned x of fewer than 2^31 elements. Weights are neither float32 nor trained in
/// rows.
bool fits(const ProductCase& c);
/// Tiles of the product's fused max pooling.
PooledTiles pooled_tiles(const ProductCase& c);
/// Fused max pooling, with or without flatten: also requires fp16 results, 8-byte aligned y, K a
/// multiple of 4, and windows without padding that fit a tile: at most 6 x 6 results, or 5 x 5.
bool fits_pooling(const ProductCase& c);

}  // namespace few_pixels
}  // namespace nibblenet
