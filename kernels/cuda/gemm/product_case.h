#pragma once

#include "kernels/activations.h"
#include "kernels/cuda/gemm/convolution_sizes.h"
#include "kernels/cuda/weights/weight_traits.h"

namespace nibblenet {

/// Max pooling in the same kernel as the convolution before it.
struct PoolingCase {
  Window window = {.size = 0};  ///< a size of 0: none
  bool flat = false;            ///< y is [N, K P Q], as PyTorch flattens it
};

/// Properties of a layer's product (y = x w, or one of its gradients) that decide which kernels can
/// compute it. Holds no pointers. For gradients, x also stands for dx, and y for dy.
struct ProductCase {
  ConvolutionSizes sizes;
  bool linear = false;
  Precision x = Precision::float16;
  Precision y = Precision::float16;
  int x_alignment = 16;  ///< bytes, of the address; 16 stands for more
  int y_alignment = 16;
  WeightTraits weight = {};
  PoolingCase pool = {};

  bool pools() const { return pool.window.size > 0; }
};

/// Shape of x w: [N, P, Q, K] of x [N, H, W, C] and w [K, C, R, S], or [N, K] of x [N, C] and w [K,
/// C].
inline Shape product_shape(const Shape& x, const Shape& w, Window window) {
  if (w.rank() == 2) return {x[0], w[0]};
  return {x[0], window.output(x[1]), window.output(x[2]), w[0]};
}
/// The product that computes y from x, of these shapes. A linear layer is a convolution of images
/// of one pixel.
inline ProductCase product_case(const Shape& x, const Shape& y, Window window, const WeightTraits& weight) {
  if (x.rank() == 2)
    return {.sizes = sizes_of({x[0], 1, 1, x[1]}, {y[0], 1, 1, y[1]}, {}), .linear = true, .weight = weight};
  return {.sizes = sizes_of(x, y, window), .weight = weight};
}

/// Throws Error where a launcher's kernel cannot compute the product.
inline void expect_fit(bool fits, std::string_view kernel, const ProductCase& c) {
  if (!fits)
    fail<Error>("{} cannot multiply {} images of {} x {} x {} by {} filters", kernel, c.sizes.n, c.sizes.h, c.sizes.w,
                c.sizes.c, c.sizes.k);
}

}  // namespace nibblenet
