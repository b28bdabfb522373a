#pragma once

#include <algorithm>

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/target.h"
#include "kernels/cuda/gemm/launchers.h"
#include "kernels/cuda/gemm/product.h"
#include "kernels/cuda/gemm/wgmma.cuh"

// Plans and starts of wgmma products over pixels.

namespace nibblenet {

/// A linear layer as one image whose pixels are the rows of x, in one line: pixel indices are cheap
/// to compute.
inline ConvolutionSizes sizes_in_lines(const ProductCase& c) {
  ConvolutionSizes s = c.sizes;
  if (!c.linear) return s;
  s.w = s.q = s.n;
  s.n = 1;
  return s;
}

/// Split-K: splits of at least three k-tiles each.
struct WgmmaSplits {
  int count;
  int k_tiles;  ///< of each

  WgmmaSplits(int64_t blocks, int all_k_tiles)
      : count(split_k::wgmma.splits(blocks, all_k_tiles / 3)), k_tiles(ceil_div(all_k_tiles, count)) {
    count = ceil_div(all_k_tiles, std::max(k_tiles, 1));
  }
};

/// Calls f.operator()<columns>() with the block width that wastes the fewest columns, the widest of
/// several. `most` is 128 or 96; where it is 96, wide blocks may waste 1 / 32 of the columns.
template <int most = 128, class F>
void with_wgmma_columns(int channels, F f) {
  const auto empty = [&](int columns) { return ceil_div(channels, columns) * columns - channels; };
  if constexpr (most == 128)
    if (empty(128) <= empty(96) && empty(128) <= empty(64)) return f.template operator()<128>();
  if (empty(96) <= empty(64) + (most == 128 ? 0 : channels / 32))
    f.template operator()<96>();
  else
    f.template operator()<64>();
}

/// Blocks and splits of a product over pixels.
struct WgmmaPixelPlan {
  int64_t blocks;
  WgmmaSplits splits;
  size_t partial_floats;

  WgmmaPixelPlan(const PixelTiles& pixels, int channels, int columns)
      : blocks(int64_t{ceil_div(pixels.pixels(), wgmma_rows)} * ceil_div(channels, columns)),
        splits(blocks, pixels.k_tiles()),
        partial_floats(splits.count > 1 ? static_cast<size_t>(splits.count) * static_cast<size_t>(pixels.pixels()) *
                                              static_cast<size_t>(channels)
                                        : 0) {}
};

/// Starts the product, and the sum of its splits where there are several. `partial`: memory for
/// plan.partial_floats, or null.
template <class Filters, class Finish>
void start_wgmma(const char* name, const PixelTiles& pixels, const Filters& w, PixelEpilogue epilogue,
                 const Finish& finish, const WgmmaPixelPlan& plan, float* partial, const Work& work, Stream& stream) {
  if (plan.splits.count > 1) epilogue.partial = partial;
  const Grid grid{dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.splits.count)), wgmma_threads,
                  WgmmaRing<PixelTiles, Filters>::bytes, true};
  launch(name, work, grid, stream, wgmma_pixel_kernel<Filters, Finish>, pixels, w, epilogue, finish, pixels.k_tiles(),
         plan.splits.k_tiles);
  if (plan.splits.count == 1) return;
  Grid sums = grid_for(int64_t{epilogue.pixels} * epilogue.channels / 8, 128);
  sums.pdl = true;
  launch("wgmma_splits", {}, sums, stream, sum_pixel_splits_kernel<Finish>, epilogue, finish, plan.splits.count);
}

}  // namespace nibblenet
