#include "kernels/cuda/conv/few_pixels_fit.h"

namespace nibblenet::few_pixels {

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

bool fits_pooling(const ProductCase& c) {
  return fits(c) && c.y == Precision::float16 && c.y_alignment == 16 && c.sizes.k % 8 == 0 &&
         c.pool.window.padding == 0 && c.pool.window.size <= few_pixels_largest_pool;
}

}  // namespace nibblenet::few_pixels
