#pragma once

#include <cstdint>

#include "engine/core/tensor.h"

namespace nibblenet {

/// Quantization error of one tensor, or of several added up: sums over weights, in double.
struct QuantizationError {
  int64_t weights = 0;
  double squared = 0;   ///< sum of (original - quantized)^2
  double absolute = 0;  ///< sum of |original - quantized|
  double signal = 0;    ///< sum of original^2

  double mse() const;  ///< mean squared error; 0 without weights
  double mae() const;  ///< mean absolute error; 0 without weights
  /// 10 log10(signal / squared). +Inf without error (also for 0 against 0), -Inf without signal.
  double snr_db() const;
  QuantizationError& operator+=(const QuantizationError& other);
};

/// The error of quantized weights. The bits do not depend on the number of threads. Throws
/// ShapeError if the shapes differ.
QuantizationError quantization_error(TensorView<const float> original, TensorView<const float> quantized);

}  // namespace nibblenet
