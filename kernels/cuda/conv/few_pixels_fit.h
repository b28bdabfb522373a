#pragma once

#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/mma_fit.h"
#include "kernels/cuda/gemm/product_case.h"

// What conv/few_pixels.cuh can compute, and how it cuts a product.

namespace nibblenet {

inline constexpr int few_pixels_warps = 8;  ///< of a block, which take superblocks of the same rows in turn
inline constexpr int few_pixels_rows = Superblocks::size;  ///< of y that a block owns, for `mma_warp_columns` pixels
inline constexpr int few_pixels_largest_pool = 15;         ///< window of fused max pooling

/// The blocks of a product: tiles of y, times the splits along k, of which each brings a superblock
/// to each warp.
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

/// Whether weights are multiplied where they lie. Others become superblocks of fp16 values in the
/// workspace.
bool multiplies_in_place(const WeightTraits& weight);
/// Convolutions of fp16 activations, whole slices of 64 channels, on 16 bytes; weights neither in
/// float32 nor in rows that train.
bool fits(const ProductCase& c);
/// Also with max pooling, and flattening, of fp16 results on 16 bytes, K a multiple of 8; windows
/// without padding.
bool fits_pooling(const ProductCase& c);

}  // namespace few_pixels
}  // namespace nibblenet
