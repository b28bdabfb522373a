#include "kernels/cuda/linear/few_outputs_fit.h"

namespace nibblenet::few_outputs {

bool fits(const ProductCase& c) {
  return c.linear && c.x == Precision::float16 && c.weight.form != WeightForm::float32 &&
         c.weight.layout == WeightLayout::channels && c.sizes.k <= most_outputs && c.sizes.c % 8 == 0 &&
         c.sizes.c <= std::numeric_limits<int>::max() / few_outputs_rows && c.x_alignment == 16;
}

bool fits_gradients(const ProductCase& c) {
  return c.linear && c.x == Precision::float16 && c.y == Precision::float16 && c.sizes.k <= most_gradient_outputs &&
         c.sizes.c > 0 && c.sizes.c % 8 == 0 && int64_t{c.sizes.n} * c.sizes.c <= std::numeric_limits<int32_t>::max() &&
         c.x_alignment == 16;
}

}  // namespace nibblenet::few_outputs
