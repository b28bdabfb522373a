#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/quant/rotation.h"

namespace nibblenet {

/// The Hessian H = X^T X / n of a layer's inputs x. If weights change by d, the output error is d H
/// d^T per row: H tells which rounding errors matter and which cancel.
struct Hessian {
  int64_t inputs = 0;         ///< D: weights behind one output channel; of a convolution C R S, in OIHW's order
  std::vector<float> values;  ///< [D, D], symmetric

  float at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * inputs + j)]; }
  /// Mean square of each input, [D].
  std::vector<float> diagonal() const;
};

/// Sums x^T x over batches of rows. Memory: D^2 floats and a few hundred rows, for any number of
/// rows.
class HessianAccumulator {
 public:
  /// Throws ShapeError unless inputs are 1 to 2^15: at 2^15, H alone takes 4 GiB.
  explicit HessianAccumulator(int64_t inputs);

  /// Adds rows[n, D], in host memory. Throws ShapeError for another D.
  void add(TensorView<const float> rows);
  /// The mean over all rows. Throws Error if there are none.
  Hessian finish() &&;

 private:
  void add_product(TensorView<const float> rows);

  Hessian sum_;                 ///< the upper triangle
  std::vector<float> waiting_;  ///< rows that wait until a pass over D^2 sums is worthwhile
  int64_t rows_ = 0;
};

/// The Hessian of rotated inputs (hadamard.h): Q H Q.
Hessian rotated(const Hessian& hessian, Rotation rotation);

/// The upper triangle row by row, as files hold it: D (D + 1) / 2 values.
std::vector<float> upper_triangle(const Hessian& hessian);
/// The Hessian of an upper triangle. Throws FormatError for a wrong count and for values that no
/// Hessian has: NaN, infinity, a negative square, a product above the root of its squares' product
/// (Cauchy-Schwarz).
Hessian from_upper_triangle(std::span<const float> values, int64_t inputs);

}  // namespace nibblenet
