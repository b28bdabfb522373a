#pragma once

#include <algorithm>
#include <limits>

#include "kernels/shapes.h"

namespace nibblenet {

/// Sizes of a convolution. A linear layer is one with H = W = R = S = 1.
struct ConvolutionSizes {
  int n = 0, h = 0, w = 0, c = 0;  ///< x [N, H, W, C]
  int p = 0, q = 0, k = 0;         ///< y [N, P, Q, K]
  int size = 1;                    ///< R = S
  int stride = 1;
  int padding = 0;

  constexpr int taps() const { return size * size; }
  constexpr int length() const { return taps() * c; }
  constexpr int outputs() const { return n * p * q; }  ///< pixels of y
  constexpr int inputs() const { return n * h * w; }   ///< pixels of x
};

/// Sizes as the kernels' 32-bit integers. Throws ShapeError for a batch with too many pixels for
/// them.
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

}  // namespace nibblenet
