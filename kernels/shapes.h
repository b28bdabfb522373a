#pragma once

#include <cstdint>

#include "engine/core/tensor.h"

namespace nibblenet {

// One letter, one meaning, everywhere in kernels/ and layers/:
//   N batch   C channels in   H W input height and width   K channels out
//   R S filter height and width   P Q output height and width   G group of a quantization scheme
// Activations are dense, float32 or float16 (kernels/activations.h), channels last: [N, H, W, C],
// or [N, C] after the flatten. Filters keep PyTorch's order [K, C, R, S], matrices [K, C]. A
// gradient dx is dLoss/dx and has the shape and order of x.

/// Geometry of a convolution or pooling window, equal in both directions.
struct Window {
  int64_t size = 1;  ///< R = S
  int64_t stride = 1;
  int64_t padding = 0;

  /// P of an input of height H (or Q of W): floor((H + 2 padding - size) / stride) + 1. Throws
  /// ShapeError when the window does not fit.
  int64_t output(int64_t input) const {
    if (size < 1 || stride < 1 || padding < 0 || input + 2 * padding < size)
      fail<ShapeError>("a window of size {}, stride {}, padding {} does not fit an input of {}", size, stride, padding,
                       input);
    return (input + 2 * padding - size) / stride + 1;
  }
  friend auto operator<=>(const Window&, const Window&) = default;
};

/// Input rows (or columns) that one output of an adaptive pooling averages: [begin, end).
struct PooledRange {
  int64_t begin;
  int64_t end;

  constexpr PooledRange(int64_t output, int64_t outputs, int64_t inputs)
      : begin(output * inputs / outputs), end(((output + 1) * inputs + outputs - 1) / outputs) {}
  constexpr int64_t size() const { return end - begin; }
};

/// What is applied to an operation's result before it is written.
enum class Epilogue : uint8_t { none, relu };

}  // namespace nibblenet
