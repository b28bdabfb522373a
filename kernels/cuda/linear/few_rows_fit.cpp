#include "kernels/cuda/linear/few_rows_fit.h"

namespace nibblenet::few_rows {

bool fits(const ProductCase& c) {
  const int most = c.weight.layout == WeightLayout::strings ? most_string_rows : most_rows;
  return c.linear && c.weight.layout != WeightLayout::channels && c.x == Precision::float16 && c.sizes.n <= most &&
         c.sizes.c % 8 == 0 && c.x_alignment == 16 && c.weight.groups <= std::numeric_limits<int>::max();
}

}  // namespace nibblenet::few_rows
