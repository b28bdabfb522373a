#include "kernels/cuda/gemm/wgmma_fit.h"

namespace nibblenet::wgmma {
namespace {

bool fits_any(const ProductCase& c) {
  return c.x == Precision::float16 && c.y == Precision::float16 && c.sizes.c % 8 == 0 && c.sizes.k % 8 == 0 &&
         c.x_alignment == 16 && c.y_alignment == 16;
}

}  // namespace

bool fits(const ProductCase& c) {
  return fits_any(c) && c.sizes.outputs() > 0 && c.weight.form != WeightForm::float32 && !c.pools();
}

bool fits_data_gradient(const ProductCase& c) {
  return fits_any(c) && c.sizes.inputs() > 0 && c.weight.trains && c.sizes.stride == 1;
}

bool fits_weight_gradient(const ProductCase& c) { return fits_any(c) && c.sizes.length() > 0 && c.sizes.outputs() > 0; }

}  // namespace nibblenet::wgmma
