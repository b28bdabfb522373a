#pragma once

#include <cstdint>

#include "engine/core/tensor.h"

namespace nibblenet {

/// What quantization costs one tensor, or several added up: sums over weights, in double.
struct QuantizationError {
  int64_t weights = 0;
  double squared = 0;   ///< sum of (original - quantized)^2
  double absolute = 0;  ///< sum of |original - quantized|
  double signal = 0;    ///< sum of original^2

  double mse() const;  ///< mean squared error; 0 without weights
  double mae() const;  ///< mean absolute error; 0 without weights
  /// 10 log10(signal / squared): +Inf where nothing is lost (0 against 0, too), -Inf where there was no signal.
  double snr_db() const;
  QuantizationError& operator+=(const QuantizationError& other);
};

/// The same bits for any number of threads. Throws ShapeError where the shapes differ.
QuantizationError quantization_error(TensorView<const float> original, TensorView<const float> quantized);

}  // namespace nibblenet
