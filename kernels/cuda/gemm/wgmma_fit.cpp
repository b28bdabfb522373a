#include "kernels/cuda/gemm/wgmma_fit.h"

#include <limits>

#include "kernels/cuda/weights/superblock.h"

namespace nibblenet::wgmma {
namespace {

/// Whether an int counts the eights of so many pixels of `channels` values.
bool fits_int(int64_t pixels, int channels) { return pixels * channels / 8 <= std::numeric_limits<int>::max(); }

bool fits_any(const ProductCase& c) {
  return c.x == Precision::float16 && c.y == Precision::float16 && c.sizes.c % 8 == 0 && c.sizes.k % 8 == 0 &&
         c.x_alignment == 16 && c.y_alignment == 16 && fits_int(c.sizes.inputs(), c.sizes.c) &&
         fits_int(c.sizes.outputs(), c.sizes.k);
}

}  // namespace

bool fits(const ProductCase& c) {
  return fits_any(c) && c.sizes.outputs() > 0 && c.weight.form != WeightForm::float32 && !c.pools();
}

bool fits_unpacked(const ProductCase& c) {
  const WeightTraits& w = c.weight;
  if (!fits(c)) return false;
  if (w.layout == WeightLayout::strings) return c.linear;
  return w.layout == WeightLayout::superblocks && w.form == WeightForm::packed && !w.steps_inside &&
         (c.linear || c.sizes.c % Superblocks::size == 0) && (w.integers || w.bits <= most_codebook_bits);
}

bool fits_data_gradient(const ProductCase& c) {
  return fits_any(c) && c.sizes.inputs() > 0 && c.weight.trains && c.sizes.stride == 1;
}

bool fits_weight_gradient(const ProductCase& c) { return fits_any(c) && c.sizes.length() > 0 && c.sizes.outputs() > 0; }

}  // namespace nibblenet::wgmma
