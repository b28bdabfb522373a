#pragma once

#include <cstdint>
#include <vector>

#include "engine/quant/hessian.h"

namespace nibblenet {

/// The order in which GPTQ rounds the weights of an output channel: as stored, or largest inputs
/// first.
enum class ColumnOrder : uint8_t { natural, diagonal };

/// The factor R of a layer's Hessian H, with H + damping I = R R^T. It depends on the order of
/// rounding, but on no scheme: one factor serves every scheme of a layer.
struct HessianFactor {
  int64_t inputs = 0;            ///< D, dead inputs included
  std::vector<int64_t> columns;  ///< live inputs in the order of rounding; inputs that were always 0 are left out
  double mean_square = 0;        ///< of the live inputs: the mean of H's diagonal
  double damping = 0;            ///< relative to mean_square
  std::vector<float> upper;      ///< R [columns, columns], upper triangular, zeros included

  int64_t count() const { return static_cast<int64_t>(columns.size()); }
  /// R_jj of a column: the output error of one rounding error that all later columns compensate.
  float diagonal(int64_t j) const { return upper[static_cast<size_t>(j * count() + j)]; }
  /// The mean of R_jj^2.
  double spread() const;
};

/// Factorizes H with 1 % of its mean diagonal added to the diagonal, and ten times as much until it
/// is positive definite. Without live inputs, `columns` is empty. Throws Error if no damping helps.
HessianFactor factorize(const Hessian& hessian, ColumnOrder order);

}  // namespace nibblenet
