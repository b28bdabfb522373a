#include "engine/quant/hessian.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/quant/blas.h"
#include "engine/quant/hadamard.h"

namespace nibblenet {
namespace {

constexpr int64_t most_inputs = int64_t{1} << 15;
constexpr int64_t rows_at_once = 512;

int64_t checked(int64_t inputs) {
  if (inputs < 1 || inputs > most_inputs)
    fail<ShapeError>("Hessian of {} inputs; supported: 1 to {}", inputs, most_inputs);
  return inputs;
}

Hessian zeros(int64_t inputs) {
  return {.inputs = inputs, .values = std::vector<float>(static_cast<size_t>(inputs * inputs))};
}

void mirror_upper_triangle(Hessian& hessian) {
  const int64_t n = hessian.inputs;
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t i = 1; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) hessian.values[static_cast<size_t>(i * n + j)] = hessian.at(j, i);
}

void transpose(Hessian& hessian) {
  const int64_t n = hessian.inputs;
  float* values = hessian.values.data();
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t i = 1; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) std::swap(values[i * n + j], values[j * n + i]);
}

/// Rounding of sums may lift a product slightly above the exact bound.
constexpr double rounding_margin = 1e-3;

/// Whether row i of the upper triangle can belong to a Hessian.
bool is_possible(const Hessian& hessian, int64_t i) {
  const double square = static_cast<double>(hessian.at(i, i));
  if (!(square >= 0) || !std::isfinite(square)) return false;
  for (int64_t j = i + 1; j < hessian.inputs; ++j) {
    const double product = static_cast<double>(hessian.at(i, j));
    if (!(product * product <= square * static_cast<double>(hessian.at(j, j)) * (1 + rounding_margin))) return false;
  }
  return true;
}

}  // namespace

std::vector<float> Hessian::diagonal() const {
  std::vector<float> squares;
  for (int64_t i = 0; i < inputs; ++i) squares.push_back(at(i, i));
  return squares;
}

HessianAccumulator::HessianAccumulator(int64_t inputs) : sum_(zeros(checked(inputs))) {}

void HessianAccumulator::add(TensorView<const float> rows) {
  expect_shape(rows.shape(), {rows.size(0), sum_.inputs}, "rows of a layer's inputs");
  rows_ += rows.size(0);
  if (waiting_.empty() && rows.size(0) >= rows_at_once) return add_product(rows);
  waiting_.insert(waiting_.end(), rows.span().begin(), rows.span().end());
  const int64_t count = static_cast<int64_t>(waiting_.size()) / sum_.inputs;
  if (count < rows_at_once) return;
  add_product({waiting_.data(), {count, sum_.inputs}});
  waiting_.clear();
}

void HessianAccumulator::add_product(TensorView<const float> rows) {
  blas::add_gram_matrix(sum_.values.data(), rows.data(), rows.size(0), sum_.inputs);
}

Hessian HessianAccumulator::finish() && {
  if (rows_ == 0) throw Error("Hessian of no rows at all");
  add_product({waiting_.data(), {static_cast<int64_t>(waiting_.size()) / sum_.inputs, sum_.inputs}});
  const auto count = static_cast<float>(rows_);
#pragma omp parallel for
  for (int64_t i = 0; i < sum_.inputs; ++i)
    for (int64_t j = i; j < sum_.inputs; ++j) sum_.values[static_cast<size_t>(i * sum_.inputs + j)] /= count;
  mirror_upper_triangle(sum_);
  return std::move(sum_);
}

Hessian rotated(const Hessian& hessian, Rotation rotation) {
  Hessian result = hessian;
  hadamard_transform(result.values, rotation);  // H Q, and Q H is its transposed
  transpose(result);
  hadamard_transform(result.values, rotation);
  mirror_upper_triangle(result);
  return result;
}

std::vector<float> upper_triangle(const Hessian& hessian) {
  const int64_t n = hessian.inputs;
  std::vector<float> values;
  values.reserve(static_cast<size_t>(n * (n + 1) / 2));
  for (int64_t i = 0; i < n; ++i)
    values.insert(values.end(), hessian.values.begin() + i * n + i, hessian.values.begin() + (i + 1) * n);
  return values;
}

Hessian from_upper_triangle(std::span<const float> values, int64_t inputs) {
  const int64_t n = checked(inputs);
  if (static_cast<int64_t>(values.size()) != n * (n + 1) / 2)
    fail<FormatError>("expected {} values of the Hessian of {} inputs, got {}", n * (n + 1) / 2, n, values.size());
  Hessian hessian = zeros(n);
  const float* next = values.data();
  for (int64_t i = 0; i < n; next += n - i, ++i) std::copy_n(next, n - i, hessian.values.begin() + i * n + i);

  int64_t first_wrong = n;
#pragma omp parallel for schedule(dynamic, 16) reduction(min : first_wrong)
  for (int64_t i = 0; i < n; ++i)
    if (!is_possible(hessian, i)) first_wrong = std::min(first_wrong, i);
  if (first_wrong < n) fail<FormatError>("row {} holds values that no Hessian has", first_wrong);
  mirror_upper_triangle(hessian);
  return hessian;
}

}  // namespace nibblenet
