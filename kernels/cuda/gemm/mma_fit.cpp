#include "kernels/cuda/gemm/mma_fit.h"

#include "kernels/cuda/device/target.h"

namespace nibblenet {
namespace {

/// Blocks of `images` images with `rows` output rows each, or rows of the pooled output.
PixelBlocks blocks_with(const ConvolutionSizes& s, const MaxPooling& pooling, int images, int rows) {
  PixelBlocks b{.sizes = s, .images = images, .rows = rows, .row_step = rows, .pooling = pooling};
  b.bands = ceil_div(s.p, rows);
  if (pooling.size > 0) {
    b.pooling.rows = rows;
    b.rows = (rows - 1) * pooling.stride + pooling.size;
    b.row_step = rows * pooling.stride;
    b.bands = ceil_div(pooling.p, rows);
  }
  const auto inputs = [&](int outputs) { return (outputs - 1) * s.stride + s.size; };
  b.height = inputs(b.rows);
  b.width = inputs(s.q);
  // A slice is copied mma_stages - 1 superblocks early, while earlier slices are still read.
  b.slots = std::min(1 + (mma_stages - 2 + s.taps()) / s.taps(), b.slices());
  return b;
}

}  // namespace

MaxPooling max_pooling(const ProductCase& c) {
  const Window& window = c.pool.window;
  if (!c.pools()) return {};
  return {.size = static_cast<int>(window.size),
          .stride = static_cast<int>(window.stride),
          .p = static_cast<int>(window.output(c.sizes.p)),
          .q = static_cast<int>(window.output(c.sizes.q))};
}

namespace mma {

std::optional<PixelBlocks> blocks_of(const ProductCase& c) {
  const ConvolutionSizes& s = c.sizes;
  const MmaShared shared(c.weight.bits, c.weight.integers);
  const int most_columns = mma_warp_columns * mma_most_column_warps(c.weight.bits, c.weight.integers);
  const auto fit = [&](const PixelBlocks& b) {
    return b.columns() <= most_columns && shared.bytes(b) <= block_shared_bytes;
  };
  const MaxPooling pooling = max_pooling(c);
  // Linear layers: more columns would leave the GPU without enough blocks; fewer would unpack
  // weights more often.
  const int wanted = s.taps() == 1 && s.p * s.q == 1 ? 4 * mma_warp_columns : most_columns;
  const int rows = c.pools() ? pooling.p : s.p;
  for (int images = std::min(s.n, wanted / (s.p * s.q)); images > 0; --images)
    if (const PixelBlocks b = blocks_with(s, pooling, images, rows); fit(b)) return b;
  for (int bands = 1; bands <= rows; ++bands)
    if (const PixelBlocks b = blocks_with(s, pooling, 1, ceil_div(rows, bands)); fit(b)) return b;
  return std::nullopt;
}

bool fits(const ProductCase& c) {
  const ConvolutionSizes& s = c.sizes;
  if (c.pools() && (c.y != Precision::float16 || c.pool.window.padding != 0 || c.pool.flat)) return false;
  return c.weight.layout != WeightLayout::channels && c.x == Precision::float16 &&
         s.c % (s.taps() == 1 ? 8 : slice_channels) == 0 && s.outputs() > 0 && c.x_alignment == 16 &&
         c.y_alignment == 16 && c.weight.groups <= std::numeric_limits<int>::max() && blocks_of(c).has_value();
}

bool fits_data_gradient(const ProductCase& c) {
  return c.x == Precision::float16 && c.y == Precision::float16 && c.weight.trains && c.sizes.c % 8 == 0 &&
         c.sizes.k % 8 == 0 && c.x_alignment == 16 && c.y_alignment == 16;
}

bool fits_weight_gradient(const ProductCase& c) {
  return c.y == Precision::float16 && c.sizes.k % 8 == 0 && c.sizes.length() > 0 && c.y_alignment == 16;
}

}  // namespace mma
}  // namespace nibblenet
