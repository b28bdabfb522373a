#include "engine/quant/hessian_factor.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/quant/blas.h"

namespace nibblenet {
namespace {

constexpr double first_damping = 0.01;
constexpr double last_damping = 1e4;

void find_live_columns(HessianFactor& factor, const Hessian& hessian, ColumnOrder order) {
  for (int64_t k = 0; k < hessian.inputs; ++k) {
    if (!(hessian.at(k, k) > 0)) continue;
    factor.columns.push_back(k);
    factor.mean_square += static_cast<double>(hessian.at(k, k));
  }
  factor.mean_square /= static_cast<double>(std::max<size_t>(factor.columns.size(), 1));
  if (order == ColumnOrder::diagonal)
    std::ranges::stable_sort(factor.columns, std::greater<>{}, [&](int64_t k) { return hessian.at(k, k); });
}

}  // namespace

double HessianFactor::spread() const {
  double sum = 0;
  for (int64_t j = 0; j < count(); ++j) sum += std::pow(static_cast<double>(diagonal(j)), 2);
  return sum / static_cast<double>(count());
}

/// H reversed in both directions equals l l^T; R is l reversed.
HessianFactor factorize(const Hessian& hessian, ColumnOrder order) {
  HessianFactor factor{.inputs = hessian.inputs};
  find_live_columns(factor, hessian, order);
  if (factor.columns.empty()) return factor;
  const int64_t n = factor.count();
  factor.upper.resize(static_cast<size_t>(n * n));
  for (factor.damping = first_damping; factor.damping <= last_damping; factor.damping *= 10) {
    const auto added = static_cast<float>(factor.damping * factor.mean_square);
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i) {
      float* row = factor.upper.data() + (n - 1 - i) * n;
      for (int64_t j = 0; j < n; ++j)
        row[n - 1 - j] = hessian.at(factor.columns[static_cast<size_t>(i)], factor.columns[static_cast<size_t>(j)]);
      row[n - 1 - i] += added;
    }
    if (!blas::cholesky_factor(factor.upper.data(), n)) continue;
    std::ranges::reverse(factor.upper);
    return factor;
  }
  throw Error("the Hessian is not positive definite, whatever is added to its diagonal; calibrate again");
}

}  // namespace nibblenet
