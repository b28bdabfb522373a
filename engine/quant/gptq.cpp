// GPTQ without an inverse. Let H = R R^T with R upper triangular. The output error of a row is
// |u|^2 with u = (w - v) R. u_j depends on columns up to j alone: u_j = s_j + (w_j - v_j) R_jj,
// where s_j comes from the columns before. So the best v_j is the value next to w_j + s_j / R_jj.
// These sums are GPTQ's adjusted weights (Babai's nearest plane, 1986). |u|^2 is the error under
// the damped H.
//
// Coordinate descent moves one v_j at a time and keeps all others: the error is then least at v_j +
// (u R^T)_j / H_jj. H itself is not needed: within a block of columns, the block's part of R R^T is
// enough.

#include "engine/quant/gptq.h"

#include <algorithm>
#include <cmath>

#include "engine/quant/blas.h"
#include "engine/quant/rounding_problem.h"

namespace nibblenet {
namespace {

constexpr int64_t block_columns = 128;
constexpr int64_t error_rows = 512;  // of the nearest codes, computed at once
constexpr int rate_passes = 2;       // the first by frequencies of the nearest codes, the next by its own
/// Errors are long sums in float32: an error counts as smaller only by more than this.
constexpr double certainty = 1e-4;
/// Bound on the error of the compensation sums in float32, relative to a weight.
constexpr double work_rounding = 0x1p-20;

/// The state of GPTQ on one tensor: from nearest codes to the final ones.
class Rounder {
 public:
  Rounder(PackedTensor& packed, TensorView<const float> weights, const HessianFactor& factor,
          const GptqOptions& options)
      : packed_(packed),
        problem_(packed, weights, factor, options.rate),
        options_(options),
        rows_(problem_.rows()),
        columns_(problem_.columns()),
        r_(factor.upper.data()),
        added_(factor.damping * factor.mean_square),
        codes_(static_cast<size_t>(rows_ * columns_)) {}

  GptqReport run() {
    all_passes_ = (problem_.weighs_bits() ? rate_passes : 1) + options_.passes;
    for (int pass = 0; pass < all_passes_; ++pass) {
      pass_ = pass;
      if (problem_.weighs_bits()) problem_.count_rates(pass == 0 ? packed_.codes : with_all_stored().codes);
      if (pass < all_passes_ - options_.passes)
        round();
      else
        descend();
    }
    GptqReport result = keep_what_is_better();
    result.damping = problem_.factor().damping;
    result.bits = code_rates(packed_.codes, code_layout(packed_)).mean;
    return result;
  }

 private:
  /// Error of one output channel, under H and under H with its diagonal damped.
  struct RowError {
    double plain = 0;
    double damped = 0;
  };

  uint8_t* codes_of(int64_t row) { return codes_.data() + row * columns_; }
  const uint8_t* codes_of(int64_t row) const { return codes_.data() + row * columns_; }
  float value(int64_t row, int64_t j) const { return problem_.value(row, j, codes_of(row)[j]); }
  void show(int64_t done) const {
    if (options_.on_columns) options_.on_columns(pass_ * columns_ + done, all_passes_ * columns_);
  }

  void round() {
    residuals_.assign(static_cast<size_t>(rows_ * columns_), 0.0F);
    std::vector<float> differences(static_cast<size_t>(rows_ * block_columns));
    for (int64_t begin = 0; begin < columns_; begin += block_columns) {
      const int64_t end = std::min(begin + block_columns, columns_);
#pragma omp parallel for
      for (int64_t row = 0; row < rows_; ++row)
        round_block(row, begin, end, residuals_.data() + row * columns_, differences.data() + row * block_columns);
      if (end < columns_)
        blas::add_product(residuals_.data() + end, columns_, differences.data(), block_columns,
                          r_ + begin * columns_ + end, columns_, rows_, columns_ - end, end - begin);
      show(end);
    }
  }

  /// Rounds columns [begin, end) of one row; their s become u. Effects on the rest of the block are
  /// summed here, those on later blocks by the matrix product that follows.
  void round_block(int64_t row, int64_t begin, int64_t end, float* sums, float* differences) {
    for (int64_t j = begin; j < end; ++j) {
      const float* r = r_ + j * columns_;
      const float target = problem_.weight(row, j) + sums[j] / r[j];
      codes_of(row)[j] = static_cast<uint8_t>(problem_.best_code(row, j, target, r[j]));
      const float rounded = value(row, j);
      const float difference = problem_.weight(row, j) - rounded;
      differences[j - begin] = difference;
      for (int64_t next = j + 1; next < end; ++next) sums[next] += difference * r[next];
      sums[j] = (target - rounded) * r[j];
    }
  }

  void descend() {
    std::vector<float> gram(static_cast<size_t>(block_columns * block_columns));
    std::vector<float> gradients(static_cast<size_t>(rows_ * block_columns)), changes(gradients.size());
    for (int64_t begin = 0; begin < columns_; begin += block_columns) {
      const int64_t count = std::min(block_columns, columns_ - begin), rest = columns_ - begin;
      const float* r = r_ + begin * columns_ + begin;
      float* residuals = residuals_.data() + begin;
      blas::multiply_by_transposed(gram.data(), block_columns, r, columns_, r, columns_, count, count, rest);
      blas::multiply_by_transposed(gradients.data(), block_columns, residuals, columns_, r, columns_, rows_, count,
                                   rest);
#pragma omp parallel for
      for (int64_t row = 0; row < rows_; ++row)
        descend_block(row, begin, count, gram.data(), gradients.data() + row * block_columns,
                      changes.data() + row * block_columns);
      blas::add_product(residuals, columns_, changes.data(), block_columns, r, columns_, rows_, rest, count);
      show(begin + count);
    }
  }

  /// Coordinate descent over `count` columns of one row. `gradients`: their u R^T. `gram`: their
  /// part of H.
  void descend_block(int64_t row, int64_t begin, int64_t count, const float* gram, float* gradients, float* changes) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = begin + i;
      const float* h = gram + i * block_columns;
      const float before = value(row, j);
      const float target = before + gradients[i] / h[i];
      codes_of(row)[j] = static_cast<uint8_t>(problem_.best_code(row, j, target, std::sqrt(h[i])));
      changes[i] = before - value(row, j);
      if (changes[i] == 0) continue;
      for (int64_t next = i + 1; next < count; ++next) gradients[next] += changes[i] * h[next];
    }
  }

  GptqReport keep_what_is_better() {
    const std::vector<RowError> nearest = nearest_errors();
    const double trace = problem_.factor().mean_square * static_cast<double>(columns_);
    GptqReport result;
    for (int64_t row = 0; row < rows_; ++row) {
      const RowError& before = nearest[static_cast<size_t>(row)];
      const RowError after = error_of(row);
      const bool better = is_surely_less(after, before, row, trace);
      result.nearest_error += before.plain;
      result.error += better ? after.plain : before.plain;
      result.rows_kept += better ? 0 : 1;
      if (better) problem_.store(packed_, row, codes_of(row));
    }
    return result;
  }

  bool is_surely_less(const RowError& after, const RowError& before, int64_t row, double trace) const {
    double squares = 0;
    for (int64_t j = 0; j < columns_; ++j)
      squares += static_cast<double>(problem_.weight(row, j)) * static_cast<double>(problem_.weight(row, j));
    // Weights that differ by d have an output error of at most |d| sqrt(trace H).
    const double rounding = work_rounding * std::sqrt(squares * trace);
    const double highest = after.plain + certainty * (after.damped + before.damped);
    const double root = std::sqrt(std::max(highest, 0.0)) + rounding;  // in this order, keeps NaN, which is not less
    return root * root + problem_.cost_above_nearest(row, codes_of(row)) < std::max(0.0, before.plain);
  }

  RowError error_of(int64_t row) const {
    RowError error;
    for (int64_t j = 0; j < columns_; ++j) {
      const auto residual = static_cast<double>(residuals_[static_cast<size_t>(row * columns_ + j)]);
      const auto difference = static_cast<double>(problem_.weight(row, j) - value(row, j));
      error.damped += residual * residual;
      error.plain -= added_ * difference * difference;
    }
    error.plain += error.damped;
    return error;
  }

  std::vector<RowError> nearest_errors() const {
    std::vector<RowError> result(static_cast<size_t>(rows_));
    std::vector<float> differences(static_cast<size_t>(std::min(rows_, error_rows) * columns_));
    std::vector<float> errors(differences.size());
    for (int64_t first = 0; first < rows_; first += error_rows) {
      const int64_t chunk = std::min(error_rows, rows_ - first);
#pragma omp parallel for
      for (int64_t row = first; row < first + chunk; ++row) {
        float* difference = differences.data() + (row - first) * columns_;
        problem_.nearest_errors(row, difference);
        for (int64_t j = 0; j < columns_; ++j)
          result[static_cast<size_t>(row)].plain -=
              added_ * static_cast<double>(difference[j]) * static_cast<double>(difference[j]);
      }
      blas::multiply_by_upper(errors.data(), differences.data(), r_, chunk, columns_);
#pragma omp parallel for
      for (int64_t row = first; row < first + chunk; ++row) {
        RowError& error = result[static_cast<size_t>(row)];
        for (int64_t j = 0; j < columns_; ++j) {
          const auto e = static_cast<double>(errors[static_cast<size_t>((row - first) * columns_ + j)]);
          error.damped += e * e;
        }
        error.plain += error.damped;
      }
    }
    return result;
  }

  PackedTensor with_all_stored() const {
    PackedTensor all = packed_;
#pragma omp parallel for
    for (int64_t row = 0; row < rows_; ++row) problem_.store(all, row, codes_of(row));
    return all;
  }

  PackedTensor& packed_;
  RoundingProblem problem_;
  const GptqOptions& options_;
  int64_t rows_;
  int64_t columns_;
  const float* r_;  ///< R
  double added_;    ///< to H's diagonal
  int all_passes_ = 0;
  int pass_ = 0;
  std::vector<uint8_t> codes_;    ///< [rows, columns]
  std::vector<float> residuals_;  ///< u of each row, [rows, columns]
};

}  // namespace

GptqReport gptq(PackedTensor& packed, TensorView<const float> weights, const HessianFactor& factor,
                const GptqOptions& options) {
  expect_shape(weights.shape(), packed.shape, "weights to round");
  if (factor.inputs != packed.shape.inner_elements())
    fail<ShapeError>("weights {} and a Hessian of {} inputs", to_string(packed.shape), factor.inputs);
  const int64_t dead = factor.inputs - factor.count();
  const std::span<const float> fisher = options.rate.fisher;
  if (!fisher.empty() && static_cast<int64_t>(fisher.size()) != packed.shape[0])
    fail<ShapeError>("Fisher diagonal of {} numbers for {} outputs", fisher.size(), packed.shape[0]);
  if (factor.columns.empty())
    return {
        .bits = code_rates(packed.codes, code_layout(packed)).mean, .rows_kept = packed.shape[0], .dead_inputs = dead};
  GptqReport result = Rounder(packed, weights, factor, options).run();
  result.dead_inputs = dead;
  return result;
}

}  // namespace nibblenet
