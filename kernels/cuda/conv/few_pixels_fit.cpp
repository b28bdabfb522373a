#include "kernels/cuda/conv/few_pixels_fit.h"

#include <utility>

namespace nibblenet {

PooledTiles::PooledTiles(const MaxPooling& pooling, int most) : pool(pooling) {
  PooledTiles tiles = *this;
  for (tiles.p = 1; tiles.p <= pool.p && tiles.height() <= most; ++tiles.p)
    for (tiles.q = 1; tiles.q <= pool.q && tiles.width() <= most / tiles.height(); ++tiles.q) {
      tiles.down = ceil_div(pool.p, tiles.p);
      tiles.across = ceil_div(pool.q, tiles.q);
      const auto cost = [](const PooledTiles& t) { return std::pair(t.of_image(), t.height() * t.width()); };
      if (p == 0 || cost(tiles) < cost(*this)) *this = tiles;
    }
}

namespace few_pixels {

bool multiplies_in_place(const WeightTraits& weight) {
  return weight.layout != WeightLayout::channels && weight.scale_run == 0 &&
         weight.groups <= std::numeric_limits<int>::max();
}

bool fits(const ProductCase& c) {
  return !c.linear && c.x == Precision::float16 && c.sizes.c % slice_channels == 0 && c.sizes.c > 0 &&
         c.x_alignment == 16 && c.sizes.size <= few_pixels_largest_window &&
         int64_t{c.sizes.inputs()} * c.sizes.c <= std::numeric_limits<int>::max() &&
         c.weight.form != WeightForm::float32 && (multiplies_in_place(c.weight) || !c.weight.trains);
}

PooledTiles pooled_tiles(const ProductCase& c) {
  const bool has_table = multiplies_in_place(c.weight) && c.weight.form == WeightForm::packed;
  const int table_bytes = has_table ? code_table_bytes(c.weight.bits, c.weight.integers) : 0;
  return {max_pooling(c), few_pixels_columns(true, table_bytes)};
}

bool fits_pooling(const ProductCase& c) {
  return fits(c) && c.y == Precision::float16 && c.y_alignment >= static_cast<int>(sizeof(uint64_t)) &&
         c.sizes.k % 4 == 0 && c.pool.window.padding == 0 && pooled_tiles(c).p > 0;
}

}  // namespace few_pixels
}  // namespace nibblenet
