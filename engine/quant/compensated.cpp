// With H = R R^T, R upper triangular, and U = R^-1, the columns' rounding errors e_j = (w_j - v_j) / U_jj, w_j after
// what was made up for in it, give the whole difference of a row as W - V = e U. So its error under the damped H is
// the sum of e_j^2, for nothing; that of the nearest codes is the same of e = (W - V) U^-1.

#include "engine/quant/compensated.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/quant/bits.h"
#include "engine/quant/blas.h"
#include "engine/quant/group_scales.h"

namespace nibblenet {
namespace {

constexpr int64_t block_columns = 128;
constexpr int64_t rows_at_once = 512;  // of the nearest codes' errors
constexpr double first_damping = 0.01;
constexpr double last_damping = 1e4;
/// Errors come out of long sums in float32: only what is less by more than this counts as less.
constexpr double certainty = 1e-4;
/// What the columns to come are moved by is rounded now and then: more than that, relative to a weight.
constexpr double work_rounding = 0x1p-20;

/// The order in which columns are rounded, those of live inputs; dead ones count for nothing.
struct Columns {
  std::vector<int64_t> live;
  double mean_square = 0;  ///< of the live inputs
};

Columns live_columns(const SecondMoments& moments, ColumnOrder order) {
  Columns columns;
  for (int64_t k = 0; k < moments.inputs; ++k) {
    if (!(moments.at(k, k) > 0)) continue;
    columns.live.push_back(k);
    columns.mean_square += static_cast<double>(moments.at(k, k));
  }
  columns.mean_square /= static_cast<double>(std::max<size_t>(columns.live.size(), 1));
  if (order == ColumnOrder::diagonal)
    std::ranges::stable_sort(columns.live, std::greater<>{}, [&](int64_t k) { return moments.at(k, k); });
  return columns;
}

/// U with (H + damping I)^-1 = U^T U, upper triangular; what is below the diagonal means nothing.
struct InverseFactor {
  std::vector<float> upper;
  double damping = 0;  ///< relative to the mean of H's diagonal
};

/// H reversed in both directions is l l^T; l^-1 reversed is U.
InverseFactor invert(const SecondMoments& moments, const Columns& columns) {
  const auto n = static_cast<int64_t>(columns.live.size());
  InverseFactor factor{.upper = std::vector<float>(static_cast<size_t>(n * n))};
  for (factor.damping = first_damping; factor.damping <= last_damping; factor.damping *= 10) {
    const auto added = static_cast<float>(factor.damping * columns.mean_square);
#pragma omp parallel for
    for (int64_t i = 0; i < n; ++i) {
      float* row = factor.upper.data() + (n - 1 - i) * n;
      for (int64_t j = 0; j < n; ++j)
        row[n - 1 - j] = moments.at(columns.live[static_cast<size_t>(i)], columns.live[static_cast<size_t>(j)]);
      row[n - 1 - i] += added;
    }
    if (!blas::invert_cholesky_factor(factor.upper.data(), n)) continue;
    std::ranges::reverse(factor.upper);
    return factor;
  }
  throw Error("the second moments are not positive definite, whatever is added to their diagonal; calibrate again");
}

/// The codes of a tensor on their way from nearest to compensated. Columns are those of live inputs, in rounding order.
class Rounder {
 public:
  Rounder(PackedTensor& packed, TensorView<const float> weights, const Columns& columns, const InverseFactor& factor)
      : packed_(packed),
        weights_(weights),
        columns_(columns.live),
        factor_(factor),
        added_(factor.damping * columns.mean_square),
        trace_(columns.mean_square * static_cast<double>(columns.live.size())),
        codebook_(codebook_of(packed)),
        view_(view_of(packed, codebook_)),
        count_(static_cast<int64_t>(columns.live.size())) {}

  Compensation run(const OnColumns& on_columns) {
    round_all(on_columns);
    const std::vector<RowError> nearest = nearest_errors();
    Compensation result{.damping = factor_.damping};
    for (int64_t row = 0; row < view_.channels; ++row) {
      const RowError& before = nearest[static_cast<size_t>(row)];
      const RowError& after = compensated_[static_cast<size_t>(row)];
      const bool better = is_surely_less(after, before, row);
      result.nearest_error += before.plain;
      result.error += better ? after.plain : before.plain;
      result.rows_kept += better ? 0 : 1;
      if (better) store(row);
    }
    return result;
  }

 private:
  /// Of one output channel: under H, and under H with its diagonal damped.
  struct RowError {
    double plain = 0;
    double damped = 0;
  };

  bool is_surely_less(const RowError& after, const RowError& before, int64_t row) const {
    double squares = 0;
    for (int64_t j = 0; j < count_; ++j)
      squares += static_cast<double>(weight(row, j)) * static_cast<double>(weight(row, j));
    // The output error of weights that are off by d is at most |d| sqrt(trace H).
    const double rounding = work_rounding * std::sqrt(squares * trace_);
    const double highest = after.plain + certainty * (after.damped + before.damped);
    return std::sqrt(std::max(0.0, highest)) + rounding < std::sqrt(std::max(0.0, before.plain));
  }

  Step step_of(int64_t row, int64_t k) const {
    const int64_t group = view_.block_ids == nullptr
                              ? view_.groups.group(row, k)
                              : read_field(view_.block_ids + row * view_.block_id_stride, k, view_.block_id_bits);
    return {.step = view_.step(group),
            .zero_point = view_.zero_points == nullptr ? 0.0F : static_cast<float>(view_.zero_points[group])};
  }

  float weight(int64_t row, int64_t column) const {
    return weights_[row * view_.channel_elements + columns_[static_cast<size_t>(column)]];
  }

  void round_all(const OnColumns& on_columns) {
    const int64_t rows = view_.channels;
    const float* u = factor_.upper.data();
    codes_.resize(static_cast<size_t>(rows * count_));
    compensated_.resize(static_cast<size_t>(rows));
    std::vector<float> work(static_cast<size_t>(rows * count_));
#pragma omp parallel for
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < count_; ++j) work[static_cast<size_t>(row * count_ + j)] = weight(row, j);

    std::vector<float> errors(static_cast<size_t>(rows * block_columns));
    for (int64_t begin = 0; begin < count_; begin += block_columns) {
      const int64_t end = std::min(begin + block_columns, count_);
#pragma omp parallel for
      for (int64_t row = 0; row < rows; ++row)
        round_block(row, begin, end, work.data() + row * count_, errors.data() + row * block_columns);
      if (end < count_)
        blas::subtract_product(work.data() + end, count_, errors.data(), block_columns, u + begin * count_ + end,
                               count_, rows, count_ - end, end - begin);
      if (on_columns) on_columns(end, count_);
    }
  }

  /// Columns [begin, end) of one row: each error is spread over the rest of the block here, over the other blocks by
  /// the product behind.
  void round_block(int64_t row, int64_t begin, int64_t end, float* work, float* errors) {
    const bool affine = packed_.scheme.zero_point;
    RowError& total = compensated_[static_cast<size_t>(row)];
    for (int64_t j = begin; j < end; ++j) {
      const float* u = factor_.upper.data() + j * count_;
      const Step step = step_of(row, columns_[static_cast<size_t>(j)]);
      const uint32_t code = code_of(work[j], step, codebook_, affine);
      codes_[static_cast<size_t>(row * count_ + j)] = static_cast<uint8_t>(code);
      const float value = reconstruct(codebook_.values[code], step.zero_point, step.step);
      const float error = (work[j] - value) / u[j];
      errors[j - begin] = error;
      for (int64_t k = j + 1; k < end; ++k) work[k] -= error * u[k];

      const double difference = static_cast<double>(weight(row, j)) - static_cast<double>(value);
      const double square = static_cast<double>(error) * static_cast<double>(error);
      total.damped += square;
      total.plain += square - added_ * difference * difference;
    }
  }

  std::vector<RowError> nearest_errors() const {
    const int64_t rows = view_.channels;
    std::vector<RowError> result(static_cast<size_t>(rows));
    std::vector<float> differences(static_cast<size_t>(std::min(rows, rows_at_once) * count_));
    for (int64_t first = 0; first < rows; first += rows_at_once) {
      const int64_t chunk = std::min(rows_at_once, rows - first);
#pragma omp parallel for
      for (int64_t row = first; row < first + chunk; ++row) {
        float* difference = differences.data() + (row - first) * count_;
        std::vector<float> values(static_cast<size_t>(view_.channel_elements));
        decode_reference(view_, row, 0, view_.channel_elements, values.data());
        for (int64_t j = 0; j < count_; ++j) {
          difference[j] = weight(row, j) - values[static_cast<size_t>(columns_[static_cast<size_t>(j)])];
          result[static_cast<size_t>(row)].plain -=
              added_ * static_cast<double>(difference[j]) * static_cast<double>(difference[j]);
        }
      }
      blas::divide_by_upper(differences.data(), factor_.upper.data(), chunk, count_);
#pragma omp parallel for
      for (int64_t row = first; row < first + chunk; ++row) {
        RowError& error = result[static_cast<size_t>(row)];
        for (int64_t j = 0; j < count_; ++j) {
          const auto e = static_cast<double>(differences[static_cast<size_t>((row - first) * count_ + j)]);
          error.damped += e * e;
        }
        error.plain += error.damped;
      }
    }
    return result;
  }

  /// The compensated codes of a row take the place of the nearest ones; those of dead inputs stay.
  void store(int64_t row) {
    const int bits = view_.bits;
    uint8_t* channel = packed_.codes.data() + row * view_.code_stride;
    std::vector<uint32_t> codes(static_cast<size_t>(view_.channel_elements));
    for (int64_t k = 0; k < view_.channel_elements; ++k) codes[static_cast<size_t>(k)] = read_field(channel, k, bits);
    for (int64_t j = 0; j < count_; ++j)
      codes[static_cast<size_t>(columns_[static_cast<size_t>(j)])] = codes_[static_cast<size_t>(row * count_ + j)];
    FieldWriter writer(channel);
    for (const uint32_t code : codes) writer.put(code, bits);
    writer.finish();
  }

  PackedTensor& packed_;
  TensorView<const float> weights_;
  const std::vector<int64_t>& columns_;
  const InverseFactor& factor_;
  double added_;  ///< to H's diagonal
  double trace_;  ///< of H
  Codebook codebook_;
  PackedView view_;
  int64_t count_;
  std::vector<uint8_t> codes_;         ///< [K, count], by column
  std::vector<RowError> compensated_;  ///< of each row
};

}  // namespace

Compensation compensate(PackedTensor& packed, TensorView<const float> weights, const SecondMoments& moments,
                        ColumnOrder order, const OnColumns& on_columns) {
  expect_shape(weights.shape(), packed.shape, "weights to compensate");
  if (moments.inputs != packed.shape.inner_elements())
    fail<ShapeError>("weights {} and second moments of {} inputs", to_string(packed.shape), moments.inputs);
  const Columns columns = live_columns(moments, order);
  const int64_t dead = moments.inputs - static_cast<int64_t>(columns.live.size());
  if (columns.live.empty()) return {.rows_kept = packed.shape[0], .dead_inputs = dead};
  const InverseFactor factor = invert(moments, columns);
  Compensation result = Rounder(packed, weights, columns, factor).run(on_columns);
  result.dead_inputs = dead;
  return result;
}

}  // namespace nibblenet
