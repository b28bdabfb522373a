#pragma once

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/mma_fit.h"
#include "kernels/cuda/gemm/product_case.h"

// Fit of conv/few_pixels.cuh, and the tiling of its products.

namespace nibblenet {

inline constexpr int few_pixels_warps = 8;  ///< of a block, which take superblocks of the same rows in turn
inline constexpr int few_pixels_rows = Superblocks::size;  ///< of y that a block owns, for `mma_warp_columns` pixels
inline constexpr int few_pixels_largest_pool = 15;         ///< window of fused max pooling
inline constexpr int few_pixels_largest_window = 16;       ///< of the convolution

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

  int64_t count() const { return columns * rows; }
  size_t partial_floats() const {
    return splits == 1 ? 0 : static_cast<size_t>(splits * count()) * mma_warp_columns * few_pixels_rows;
  }
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
/// Fused max pooling, with or without flatten: also requires fp16 results, 16-byte aligned y, K a
/// multiple of 8, and windows without padding.
bool fits_pooling(const ProductCase& c);

}  // namespace few_pixels
}  // namespace nibblenet
