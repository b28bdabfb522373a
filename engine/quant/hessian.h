#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/tensor.h"

namespace nibblenet {

/// H = X^T X / n of the inputs x of a layer: its output error under weights changed by d is d H d^T a row, so H says
/// which errors of rounding matter and which cancel.
struct Hessian {
  int64_t inputs = 0;         ///< D: weights behind one output channel; of a convolution C R S, in OIHW's order
  std::vector<float> values;  ///< [D, D], symmetric

  float at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * inputs + j)]; }
  std::vector<float> diagonal() const;
};

/// Sums x^T x over batches of rows; D^2 floats and a few hundred rows, whatever their number.
class HessianAccumulator {
 public:
  /// Throws ShapeError for less than one input or more than 2^15, beyond which H alone takes 4 GiB.
  explicit HessianAccumulator(int64_t inputs);

  /// rows[n, D] in host memory. Throws ShapeError for another D.
  void add(TensorView<const float> rows);
  int64_t rows() const { return rows_; }
  /// The mean over all rows. Throws Error when there were none.
  Hessian finish() &&;

 private:
  void add_product(TensorView<const float> rows);

  Hessian sum_;                 ///< the upper triangle
  std::vector<float> waiting_;  ///< rows that are too few to be worth a pass over D^2 sums
  int64_t rows_ = 0;
};

/// Rows of the upper triangle, one behind the other: D (D + 1) / 2 values, what a file holds.
std::vector<float> upper_triangle(const Hessian& hessian);
/// Its inverse. Throws FormatError for a wrong count and for what cannot be a Hessian: NaN or infinite values, a
/// negative square, a product above the root of its squares' product (Cauchy-Schwarz).
Hessian from_upper_triangle(std::span<const float> values, int64_t inputs);

/// Output error of every output channel: (w - v) H (w - v)^T for weights w and what they were rounded to, [K, ...], in
/// float64 and as plainly as the formula. Throws ShapeError when sizes disagree.
std::vector<double> output_error(TensorView<const float> weights, TensorView<const float> rounded,
                                 const Hessian& hessian);

}  // namespace nibblenet
