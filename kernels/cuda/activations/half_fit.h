#pragma once

#include <limits>

#include "kernels/training.h"

// Fit of the fp16 kernels that take eight elements (16 bytes) per thread: max pooling
// (activations/half_pooling.cuh) and dropout (activations/pointwise.cu).

namespace nibblenet {

/// Whether a kernel can store dx as HalfGradient does. Requires fp16 values, and 16-byte aligned dx
/// and ReLU output.
inline bool fits_half_gradient(ConstActivations dx, const GradientStore& store) {
  return dx.precision() == Precision::float16 && on_16_bytes(dx.data()) && on_16_bytes(store.relu_output.data());
}

namespace half_pooling {

/// Requires fp16 values, C a multiple of 8, windows of 3 x 3 at stride 2 without padding, and fewer
/// than 2^31 elements. x and y are 16-byte aligned, `argmax` is 8-byte aligned.
inline bool fits(ConstActivations y, const uint8_t* argmax, ConstActivations x, Window window) {
  return x.precision() == Precision::float16 && y.precision() == Precision::float16 && x.size(3) % 8 == 0 &&
         window.size == 3 && window.stride == 2 && window.padding == 0 &&
         x.elements() <= std::numeric_limits<int32_t>::max() && on_16_bytes(x.data()) && on_16_bytes(y.data()) &&
         alignment_of(argmax) >= 8;
}
/// Backward: also requires fits_half_gradient().
inline bool fits_backward(ConstActivations dx, ConstActivations dy, const uint8_t* argmax, Window window,
                          const GradientStore& store) {
  return fits(dy, argmax, dx, window) && fits_half_gradient(dx, store);
}

}  // namespace half_pooling

namespace half_dropout {

/// Requires 16-byte aligned fp16 values, their number a multiple of 8.
inline bool fits(ConstActivations y, ConstActivations x, const GradientStore& store) {
  return x.precision() == Precision::float16 && x.elements() % 8 == 0 && on_16_bytes(x.data()) &&
         fits_half_gradient(y, store);
}

}  // namespace half_dropout
}  // namespace nibblenet
