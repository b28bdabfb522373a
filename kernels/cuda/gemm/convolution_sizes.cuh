#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/gemm/im2col.cuh"
#include "kernels/shapes.h"

namespace nibblenet {

/// Sizes as the kernels' 32-bit integers. Throws ShapeError for a batch whose pixels they cannot count.
inline ConvolutionSizes sizes_of(const Shape& x, const Shape& y, Window window) {
  constexpr int64_t most = std::numeric_limits<int>::max() - 1024;  // the largest block's
  const int64_t largest = std::max(
      {x[0] * x[1] * x[2], y[0] * y[1] * y[2], window.size * window.size * x[3], window.size * window.size * y[3]});
  if (largest > most) fail<ShapeError>("a convolution of {} has too many pixels; use a smaller batch", to_string(x));
  const auto small = [](int64_t value) { return static_cast<int>(value); };
  return {.n = small(x[0]),
          .h = small(x[1]),
          .w = small(x[2]),
          .c = small(x[3]),
          .p = small(y[1]),
          .q = small(y[2]),
          .k = small(y[3]),
          .size = small(window.size),
          .stride = small(window.stride),
          .padding = small(window.padding)};
}

inline Work work_of(const ConvolutionSizes& s, double weight_bytes, double element_bytes) {
  const double outputs = static_cast<double>(s.outputs()) * s.k;
  return {.bytes = weight_bytes + element_bytes * (outputs + static_cast<double>(s.inputs()) * s.c),
          .flops = 2.0 * outputs * s.length()};
}

/// [N, C] as images of one pixel.
inline Shape as_images(const Shape& matrix) { return {matrix[0], 1, 1, matrix[1]}; }

}  // namespace nibblenet
