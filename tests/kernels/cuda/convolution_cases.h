#pragma once

#include <limits>
#include <vector>

#include "kernels/cuda/backend_cuda.h"
#include "tests/kernels/values.h"

namespace nibblenet::testing {

struct ConvolutionCase {
  Shape x;  ///< NHWC, or [N, C] of a linear layer
  Shape w;
  Window window = {};

  Shape result_shape() const {
    if (x.rank() == 2) return {x[0], w[0]};
    return {x[0], window.output(x[1]), window.output(x[2]), w[0]};
  }
};

/// The product of fp16 activations, stored as fp16 values.
inline Values fp16_product(CudaBackend& backend, const ConvolutionCase& c, const Values& x, Weight& w,
                           const Values& bias, Epilogue epilogue = Epilogue::none) {
  const Buffer<f16> input = fp16_on(backend, x);
  const TensorView<const f16> in(input.data(), c.x);
  const Tensor<float> offset = on(backend, bias);
  return output_of(backend, c.result_shape(), [&](TensorView<float> floats) {
    Buffer<f16> fp16 = fp16_on(backend, Values(floats.shape(), std::numeric_limits<float>::quiet_NaN()));
    const TensorView<f16> y(fp16.data(), floats.shape());
    if (c.x.rank() == 2)
      backend.linear_forward(y, in, w, offset.view(), epilogue);
    else
      backend.conv2d_forward(y, in, w, offset.view(), c.window, epilogue);
    backend.convert(floats, y);
  });
}

/// Cases for superblocks: filters of several slices, of rows around a block's 64 and 128, of
/// strides, without padding; images of which a block holds many, one, and a band.
inline const std::vector<ConvolutionCase> superblock_convolutions = {
    {{3, 4, 5, 64}, {70, 64, 3, 3}, {3, 1, 1}},    {{1, 13, 13, 128}, {64, 128, 3, 3}, {3, 1, 1}},
    {{2, 7, 6, 192}, {130, 192, 2, 2}, {2, 2, 1}}, {{1, 19, 17, 64}, {64, 64, 5, 5}, {5, 1, 2}},
    {{5, 3, 3, 64}, {1, 64, 1, 1}, {1, 1, 0}},     {{1, 9, 9, 64}, {65, 64, 3, 3}, {3, 3, 0}},
};

}  // namespace nibblenet::testing
