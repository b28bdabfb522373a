// With H = R R^T, R upper triangular, the output error of a row is |e|^2, e = (W - V) R, and e_j depends on the columns
// up to j alone: e_j = s_j + (w_j - v_j) R_jj, where s_j is what the columns before have done. So v_j is best next to
// w_j + s_j / R_jj. This is GPTQ without an inverse (its weights, moved by what was made up for in them, are these very
// sums; Babai's nearest plane, 1986), and the error under the damped H is the sum of e_j^2, for nothing.

#include "engine/quant/compensated.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "engine/quant/bits.h"
#include "engine/quant/blas.h"
#include "engine/quant/entropy_model.h"
#include "engine/quant/group_scales.h"

namespace nibblenet {
namespace {

constexpr int64_t block_columns = 128;
constexpr int64_t rows_at_once = 512;  // of the nearest codes' errors
constexpr int rate_passes = 2;         // the first on the nearest codes' frequencies, the next on its own
/// Errors come out of long sums in float32: only what is less by more than this counts as less.
constexpr double certainty = 1e-4;
/// What the columns to come are moved by is summed in float32: off by less than that, relative to a weight.
constexpr double work_rounding = 0x1p-20;

/// The codes of a tensor on their way from nearest to compensated. Columns are those of live inputs, in rounding order.
class Rounder {
 public:
  Rounder(PackedTensor& packed, TensorView<const float> weights, const MomentFactor& factor, const RateCost& rate)
      : packed_(packed),
        weights_(weights),
        columns_(factor.columns),
        factor_(factor),
        added_(factor.damping * factor.mean_square),
        trace_(factor.mean_square * static_cast<double>(factor.count())),
        codebook_(codebook_of(packed)),
        view_(view_of(packed, codebook_)),
        count_(factor.count()) {
    if (rate.weight > 0) make_bit_costs(rate);
    for (int i = 0; i < codebook_.count; ++i) rank_[codebook_.ordered_codes[i]] = i;
  }

  Compensation run(const OnColumns& on_columns) {
    const int passes = bit_costs_.empty() ? 1 : rate_passes;
    for (int pass = 0; pass < passes; ++pass) {
      if (passes > 1) rates_ = code_rates(pass == 0 ? packed_.codes : with_all_stored().codes, code_layout(packed_));
      round_all([&](int64_t done, int64_t total) {
        if (on_columns) on_columns(pass * total + done, passes * total);
      });
    }
    Compensation result = keep_what_is_better();
    result.damping = factor_.damping;
    result.bits = code_rates(packed_.codes, code_layout(packed_)).mean;
    return result;
  }

 private:
  /// Of one output channel: under H, and under H with its diagonal damped.
  struct RowError {
    double plain = 0;
    double damped = 0;
  };

  Compensation keep_what_is_better() {
    const std::vector<RowError> nearest = nearest_errors();
    Compensation result;
    for (int64_t row = 0; row < view_.channels; ++row) {
      const RowError& before = nearest[static_cast<size_t>(row)];
      const RowError& after = compensated_[static_cast<size_t>(row)];
      const bool better = is_surely_less(after, before, row);
      result.nearest_error += before.plain;
      result.error += better ? after.plain : before.plain;
      result.rows_kept += better ? 0 : 1;
      if (better) store(packed_, row);
    }
    return result;
  }

  bool is_surely_less(const RowError& after, const RowError& before, int64_t row) const {
    double squares = 0;
    for (int64_t j = 0; j < count_; ++j)
      squares += static_cast<double>(weight(row, j)) * static_cast<double>(weight(row, j));
    // The output error of weights that are off by d is at most |d| sqrt(trace H).
    const double rounding = work_rounding * std::sqrt(squares * trace_);
    const double highest = after.plain + certainty * (after.damped + before.damped);
    const double root = std::sqrt(std::max(0.0, highest)) + rounding;
    return root * root + saved_by_nearest(row) < std::max(0.0, before.plain);
  }

  /// The cost of the bits by which a row's compensated codes take more than the nearest ones; below 0: fewer.
  double saved_by_nearest(int64_t row) const {
    if (bit_costs_.empty()) return 0;
    const uint8_t* nearest = view_.codes + row * view_.code_stride;
    double more = 0;
    for (int64_t j = 0; j < count_; ++j) {
      const int64_t k = columns_[static_cast<size_t>(j)];
      const std::vector<float>& bits = rates_.bits[rates_.class_at(row, k)];
      more += static_cast<double>(bits[codes_[static_cast<size_t>(row * count_ + j)]]) -
              static_cast<double>(bits[read_field(nearest, k, view_.bits)]);
    }
    return static_cast<double>(bit_costs_[static_cast<size_t>(row)]) * more;
  }

  /// Of a bit, in units of a row's e^2: L unit / g.
  void make_bit_costs(const RateCost& rate) {
    const auto g = [&](size_t row) {
      return rate.importance.empty() ? 1.0 : static_cast<double>(rate.importance[row]);
    };
    const std::vector<double> squares = squared_errors();
    double unit = 0;
    for (size_t row = 0; row < squares.size(); ++row) unit += g(row) * squares[row];
    unit *= factor_.spread() / static_cast<double>(view_.channels * count_);
    for (size_t row = 0; row < squares.size(); ++row)
      bit_costs_.push_back(static_cast<float>(rate.weight * unit / g(row)));
  }

  /// What rounding to nearest does to the weights of each row, column by column.
  void rounding_errors(int64_t row, float* errors) const {
    std::vector<float> values(static_cast<size_t>(view_.channel_elements));
    decode_reference(view_, row, 0, view_.channel_elements, values.data());
    for (int64_t j = 0; j < count_; ++j)
      errors[j] = weight(row, j) - values[static_cast<size_t>(columns_[static_cast<size_t>(j)])];
  }

  /// The sum of their squares, of each row.
  std::vector<double> squared_errors() const {
    std::vector<double> squares(static_cast<size_t>(view_.channels));
#pragma omp parallel for
    for (int64_t row = 0; row < view_.channels; ++row) {
      std::vector<float> errors(static_cast<size_t>(count_));
      rounding_errors(row, errors.data());
      for (const float error : errors)
        squares[static_cast<size_t>(row)] += static_cast<double>(error) * static_cast<double>(error);
    }
    return squares;
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
    const float* r = factor_.upper.data();
    codes_.resize(static_cast<size_t>(rows * count_));
    compensated_.assign(static_cast<size_t>(rows), {});
    std::vector<float> sums(static_cast<size_t>(rows * count_)), differences(static_cast<size_t>(rows * block_columns));
    for (int64_t begin = 0; begin < count_; begin += block_columns) {
      const int64_t end = std::min(begin + block_columns, count_);
#pragma omp parallel for
      for (int64_t row = 0; row < rows; ++row)
        round_block(row, begin, end, sums.data() + row * count_, differences.data() + row * block_columns);
      if (end < count_)
        blas::add_product(sums.data() + end, count_, differences.data(), block_columns, r + begin * count_ + end,
                          count_, rows, count_ - end, end - begin);
      on_columns(end, count_);
    }
  }

  /// The one with the least sum of costs: looked for from the nearest one on in both directions, as far as the error
  /// leaves room beside the fewest bits that there are. `r`: what a difference of 1 adds to the error.
  uint32_t cheapest_code(uint32_t nearest, float target, float r, const Step& step, size_t rate_class,
                         float bit_cost) const {
    const std::vector<float>& bits = rates_.bits[rate_class];
    const float fewest = rates_.least[rate_class];
    if (bits[nearest] <= fewest || step.step == 0) return nearest;
    const auto squared_error = [&](uint32_t code) {
      const float error = (target - reconstruct(codebook_.values[code], step.zero_point, step.step)) * r;
      return error * error;
    };
    uint32_t best = nearest;
    float least = squared_error(nearest) + bit_cost * bits[nearest];
    for (const int direction : {-1, 1})
      for (int rank = rank_[nearest] + direction; 0 <= rank && rank < codebook_.count; rank += direction) {
        const uint32_t code = codebook_.ordered_codes[rank];
        const float square = squared_error(code);
        if (square + bit_cost * fewest >= least) break;
        if (const float cost = square + bit_cost * bits[code]; cost < least) {
          least = cost;
          best = code;
        }
      }
    return best;
  }

  /// Columns [begin, end) of one row: what each difference does to the rest of the block is summed here, to the other
  /// blocks by the product behind.
  void round_block(int64_t row, int64_t begin, int64_t end, float* sums, float* differences) {
    RowError& total = compensated_[static_cast<size_t>(row)];
    for (int64_t j = begin; j < end; ++j) {
      const float* r = factor_.upper.data() + j * count_;
      const int64_t k = columns_[static_cast<size_t>(j)];
      const Step step = step_of(row, k);
      const float target = weight(row, j) + sums[j] / r[j];
      uint32_t code = code_of(target, step, codebook_, packed_.scheme.zero_point);
      if (!bit_costs_.empty())
        code = cheapest_code(code, target, r[j], step, rates_.class_at(row, k), bit_costs_[static_cast<size_t>(row)]);
      codes_[static_cast<size_t>(row * count_ + j)] = static_cast<uint8_t>(code);
      const float value = reconstruct(codebook_.values[code], step.zero_point, step.step);
      const float difference = weight(row, j) - value;
      differences[j - begin] = difference;
      for (int64_t next = j + 1; next < end; ++next) sums[next] += difference * r[next];

      const double error = static_cast<double>(target - value) * static_cast<double>(r[j]);
      total.damped += error * error;
      total.plain += error * error - added_ * static_cast<double>(difference) * static_cast<double>(difference);
    }
  }

  std::vector<RowError> nearest_errors() const {
    const int64_t rows = view_.channels;
    std::vector<RowError> result(static_cast<size_t>(rows));
    std::vector<float> differences(static_cast<size_t>(std::min(rows, rows_at_once) * count_));
    std::vector<float> errors(differences.size());
    for (int64_t first = 0; first < rows; first += rows_at_once) {
      const int64_t chunk = std::min(rows_at_once, rows - first);
#pragma omp parallel for
      for (int64_t row = first; row < first + chunk; ++row) {
        float* difference = differences.data() + (row - first) * count_;
        rounding_errors(row, difference);
        for (int64_t j = 0; j < count_; ++j)
          result[static_cast<size_t>(row)].plain -=
              added_ * static_cast<double>(difference[j]) * static_cast<double>(difference[j]);
      }
      blas::multiply_by_upper(errors.data(), differences.data(), factor_.upper.data(), chunk, count_);
#pragma omp parallel for
      for (int64_t row = first; row < first + chunk; ++row) {
        RowError& error = result[static_cast<size_t>(row)];
        for (int64_t j = 0; j < count_; ++j) {
          const auto e = static_cast<double>(errors[static_cast<size_t>((row - first) * count_ + j)]);
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
    for (int64_t row = 0; row < view_.channels; ++row) store(all, row);
    return all;
  }

  /// The compensated codes of a row take the place of the nearest ones; those of dead inputs stay.
  void store(PackedTensor& packed, int64_t row) const {
    const int bits = view_.bits;
    uint8_t* channel = packed.codes.data() + row * view_.code_stride;
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
  const MomentFactor& factor_;
  double added_;  ///< to H's diagonal
  double trace_;  ///< of H
  Codebook codebook_;
  PackedView view_;
  int64_t count_;
  std::vector<float> bit_costs_;       ///< of each row, in units of e^2; empty: bits cost nothing
  CodeRates rates_;                    ///< the bits
  std::array<int, 256> rank_{};        ///< of a code among the codebook's ascending values
  std::vector<uint8_t> codes_;         ///< [K, count], by column
  std::vector<RowError> compensated_;  ///< of each row
};

}  // namespace

Compensation compensate(PackedTensor& packed, TensorView<const float> weights, const MomentFactor& factor,
                        const RateCost& rate, const OnColumns& on_columns) {
  expect_shape(weights.shape(), packed.shape, "weights to compensate");
  if (factor.inputs != packed.shape.inner_elements())
    fail<ShapeError>("weights {} and second moments of {} inputs", to_string(packed.shape), factor.inputs);
  const int64_t dead = factor.inputs - factor.count();
  if (!rate.importance.empty() && static_cast<int64_t>(rate.importance.size()) != packed.shape[0])
    fail<ShapeError>("{} numbers of importance for {} outputs", rate.importance.size(), packed.shape[0]);
  if (factor.columns.empty())
    return {
        .bits = code_rates(packed.codes, code_layout(packed)).mean, .rows_kept = packed.shape[0], .dead_inputs = dead};
  Compensation result = Rounder(packed, weights, factor, rate).run(on_columns);
  result.dead_inputs = dead;
  return result;
}

Compensation compensate(PackedTensor& packed, TensorView<const float> weights, const SecondMoments& moments,
                        ColumnOrder order, const OnColumns& on_columns) {
  if (moments.inputs != packed.shape.inner_elements())
    fail<ShapeError>("weights {} and second moments of {} inputs", to_string(packed.shape), moments.inputs);
  return compensate(packed, weights, factorize(moments, order), {}, on_columns);
}

}  // namespace nibblenet
