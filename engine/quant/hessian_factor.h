#pragma once

#include <cstdint>
#include <vector>

#include "engine/quant/hessian.h"

namespace nibblenet {

/// In which order weights of an output channel are rounded: as stored, or those of the largest inputs first.
enum class ColumnOrder : uint8_t { natural, diagonal };

/// What GPTQ needs of a layer's Hessian H: R with H + damping I = R R^T. It depends on the order
/// of rounding but on no scheme, so that one serves all the ways in which a layer may be stored.
struct HessianFactor {
  int64_t inputs = 0;            ///< D, dead ones and all
  std::vector<int64_t> columns;  ///< live inputs in the order of rounding; those that were 0 throughout are left out
  double mean_square = 0;        ///< of the live inputs: the mean of H's diagonal
  double damping = 0;            ///< relative to mean_square
  std::vector<float> upper;      ///< R [columns, columns], upper triangular, zeros and all

  int64_t count() const { return static_cast<int64_t>(columns.size()); }
  /// R_jj of a column: what a rounding error becomes in the output, when all others make up for it.
  float diagonal(int64_t j) const { return upper[static_cast<size_t>(j * count() + j)]; }
  /// The mean of R_jj^2.
  double spread() const;
};

/// H gets 1 % of its mean diagonal added to the diagonal, ten times as much for as long as it is not positive definite.
/// Without live inputs `columns` is empty. Throws Error when no damping helps.
HessianFactor factorize(const Hessian& hessian, ColumnOrder order);

}  // namespace nibblenet
