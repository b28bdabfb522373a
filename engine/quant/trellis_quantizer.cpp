#include "engine/quant/trellis_quantizer.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <optional>

#include "engine/quant/blas.h"
#include "engine/quant/group_scales.h"
#include "engine/quant/trellis.h"

namespace nibblenet {
namespace {

constexpr int64_t block_inputs = 128;
/// Errors are long sums in float32: an error counts as smaller only by more than this.
constexpr double trellis_certainty = 1e-4;

/// A channel's scale for a root mean square of 1: the factor of least error on normal weights.
float scale_factor(int quarters) {
  if (quarters <= 4) return 0.9F;
  if (quarters == 5) return 0.95F;
  return quarters <= 8 ? 1.0F : 1.05F;
}

/// Calls work(encoder, sequence) for every sequence on OpenMP's threads.
template <class Work>
void for_sequences(const TrellisLayout& layout, int64_t repeats, Work work) {
  std::exception_ptr error;
#pragma omp parallel
  {
    std::optional<TrellisEncoder> encoder;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < layout.sequences() * repeats; ++i) {
      try {
        if (!encoder) encoder.emplace(layout.quarters);
        work(*encoder, i % layout.sequences(), i / layout.sequences());
      } catch (...) {
#pragma omp critical
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

/// A tensor whose strings are being chosen.
class TrellisTensor {
 public:
  TrellisTensor(PackedTensor& packed, TensorView<const float> weights, const std::vector<Step>& steps)
      : packed_(packed),
        weights_(weights),
        layout_(trellis_layout(packed)),
        values_(static_cast<size_t>(layout_.inputs * layout_.sequences() * trellis_sequence)) {
    steps_.resize(static_cast<size_t>(layout_.sequences() * trellis_sequence));
    for (size_t channel = 0; channel < steps.size(); ++channel) steps_[channel] = steps[channel].step;
  }

  const TrellisLayout& layout() const { return layout_; }
  float weight(int64_t channel, int64_t input) const { return weights_[channel * layout_.inputs + input]; }
  float step(int64_t channel) const { return steps_[static_cast<size_t>(channel)]; }
  void set_step(int64_t channel, float step) { steps_[static_cast<size_t>(channel)] = step; }
  /// The value of a weight's window.
  int16_t value(int64_t channel, int64_t input) const {
    return values_[static_cast<size_t>(input * layout_.sequences() * trellis_sequence + channel)];
  }
  float rounded(int64_t channel, int64_t input) const {
    return reconstruct(static_cast<float>(value(channel, input)), 0.0F, step(channel));
  }
  int64_t first(int64_t s) const { return s * trellis_sequence; }
  /// Channels of a sequence, without padding.
  int64_t count(int64_t s) const { return std::min(trellis_sequence, layout_.channels - first(s)); }

  /// Chooses the string of a sequence for `targets`, one a channel; what stands behind them is
  /// overwritten.
  void choose(TrellisEncoder& encoder, int64_t s, int64_t input, float* targets) {
    std::fill(targets + count(s), targets + layout_.length(s), 0.0F);
    encoder.encode(targets, steps_.data() + first(s), layout_.length(s), string(s, input), values_of(s, input));
  }
  /// The same, unless the string that is there has no larger error.
  void choose_better(TrellisEncoder& encoder, int64_t s, int64_t input, float* targets) {
    double before = 0;
    for (int64_t i = 0; i < count(s); ++i) before += square(targets[i] - rounded(first(s) + i, input));
    std::vector<uint8_t> old_string(string(s, input), string(s, input) + layout_.string_bytes(s));
    std::vector<int16_t> old_values(values_of(s, input), values_of(s, input) + layout_.length(s));
    choose(encoder, s, input, targets);
    double after = 0;
    for (int64_t i = 0; i < count(s); ++i) after += square(targets[i] - rounded(first(s) + i, input));
    if (after < before) return;
    std::ranges::copy(old_string, string(s, input));
    std::ranges::copy(old_values, values_of(s, input));
  }

  void choose_nearest(const OnColumns& on_columns) {
    for (int64_t begin = 0; begin < layout_.inputs; begin += block_inputs) {
      const int64_t count_of_inputs = std::min(block_inputs, layout_.inputs - begin);
      for_sequences(layout_, count_of_inputs, [&](TrellisEncoder& encoder, int64_t s, int64_t k) {
        float targets[trellis_sequence];
        for (int64_t i = 0; i < count(s); ++i) targets[i] = weight(first(s) + i, begin + k);
        choose(encoder, s, begin + k, targets);
      });
      if (on_columns) on_columns(begin + count_of_inputs, layout_.inputs);
    }
  }

  /// The factor of each channel's step of least squared error with the values chosen.
  std::vector<float> better_factors(std::span<const float> importance) const {
    std::vector<float> factors(static_cast<size_t>(layout_.channels), 1.0F);
#pragma omp parallel for
    for (int64_t channel = 0; channel < layout_.channels; ++channel) {
      double product = 0, squares = 0;
      for (int64_t k = 0; k < layout_.inputs; ++k) {
        const double v = rounded(channel, k), h = importance.empty() ? 1.0 : importance[static_cast<size_t>(k)];
        product += h * v * weight(channel, k);
        squares += h * v * v;
      }
      if (squares > 0 && product > 0) factors[static_cast<size_t>(channel)] = static_cast<float>(product / squares);
    }
    return factors;
  }

 private:
  static double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }
  uint8_t* string(int64_t s, int64_t input) { return packed_.codes.data() + layout_.offset(s, input); }
  int16_t* values_of(int64_t s, int64_t input) {
    return values_.data() + (input * layout_.sequences() + s) * trellis_sequence;
  }

  PackedTensor& packed_;
  TensorView<const float> weights_;
  TrellisLayout layout_;
  std::vector<float> steps_;     ///< by channel, 0 for padding
  std::vector<int16_t> values_;  ///< [inputs, channels with padding]
};

/// GPTQ and coordinate descent, as gptq.cpp does them, a string in a code's place.
class TrellisRounder {
 public:
  TrellisRounder(TrellisTensor& tensor, const HessianFactor& factor, const QuantizeOptions& options)
      : tensor_(tensor),
        factor_(factor),
        options_(options),
        rows_(tensor.layout().channels),
        columns_(factor.count()),
        r_(factor.upper.data()),
        residuals_(static_cast<size_t>(rows_ * columns_)) {}

  /// Of the nearest strings, which the tensor holds before run().
  double error_of_nearest() {
#pragma omp parallel for
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t j = 0; j < columns_; ++j) residuals_[at(row, j)] = difference(row, j);
    std::vector<float> errors(residuals_.size());
    blas::multiply_by_upper(errors.data(), residuals_.data(), r_, rows_, columns_);
    residuals_.swap(errors);
    return error();
  }

  /// Chooses all strings. Returns their error.
  double run() {
    std::ranges::fill(residuals_, 0.0F);
    for (pass_ = 0; pass_ <= options_.passes; ++pass_)
      for (int64_t begin = 0; begin < columns_; begin += block_inputs) {
        const int64_t end = std::min(begin + block_inputs, columns_);
        if (pass_ == 0)
          round(begin, end);
        else
          descend(begin, end - begin);
        if (options_.on_columns) options_.on_columns(pass_ * columns_ + end, (options_.passes + 1) * columns_);
      }
    return error();
  }

 private:
  size_t at(int64_t row, int64_t j) const { return static_cast<size_t>(row * columns_ + j); }
  int64_t input(int64_t j) const { return factor_.columns[static_cast<size_t>(j)]; }
  float difference(int64_t row, int64_t j) const {
    return tensor_.weight(row, input(j)) - tensor_.rounded(row, input(j));
  }

  /// tr((W - V) H (W - V)^T), from the residuals u = (w - v) R and what damping added to H.
  double error() const {
    const double added = factor_.damping * factor_.mean_square;
    double sum = 0;
#pragma omp parallel for reduction(+ : sum)
    for (int64_t row = 0; row < rows_; ++row) {
      double of_row = 0;
      for (int64_t j = 0; j < columns_; ++j) {
        const auto u = static_cast<double>(residuals_[at(row, j)]), e = static_cast<double>(difference(row, j));
        of_row += u * u - added * e * e;
      }
      sum += of_row;
    }
    return sum;
  }

  void round(int64_t begin, int64_t end) {
    std::vector<float> differences(static_cast<size_t>(rows_ * block_inputs));
    for_sequences(tensor_.layout(), 1, [&](TrellisEncoder& encoder, int64_t s, int64_t) {
      float targets[trellis_sequence];
      const int64_t first = tensor_.first(s), count = tensor_.count(s);
      for (int64_t j = begin; j < end; ++j) {
        const float* r = r_ + j * columns_;
        for (int64_t i = 0; i < count; ++i)
          targets[i] = tensor_.weight(first + i, input(j)) + residuals_[at(first + i, j)] / r[j];
        tensor_.choose(encoder, s, input(j), targets);
        for (int64_t i = 0; i < count; ++i) {
          float* sums = residuals_.data() + (first + i) * columns_;
          const float by = difference(first + i, j);
          differences[static_cast<size_t>((first + i) * block_inputs + j - begin)] = by;
          for (int64_t next = j + 1; next < end; ++next) sums[next] += by * r[next];
          sums[j] = (targets[i] - tensor_.rounded(first + i, input(j))) * r[j];
        }
      }
    });
    if (end < columns_)
      blas::add_product(residuals_.data() + end, columns_, differences.data(), block_inputs,
                        r_ + begin * columns_ + end, columns_, rows_, columns_ - end, end - begin);
  }

  void descend(int64_t begin, int64_t count_of_columns) {
    const int64_t rest = columns_ - begin;
    const float* r = r_ + begin * columns_ + begin;
    float* residuals = residuals_.data() + begin;
    std::vector<float> gram(static_cast<size_t>(block_inputs * block_inputs));
    std::vector<float> gradients(static_cast<size_t>(rows_ * block_inputs)), changes(gradients.size());
    blas::multiply_by_transposed(gram.data(), block_inputs, r, columns_, r, columns_, count_of_columns,
                                 count_of_columns, rest);
    blas::multiply_by_transposed(gradients.data(), block_inputs, residuals, columns_, r, columns_, rows_,
                                 count_of_columns, rest);
    for_sequences(tensor_.layout(), 1, [&](TrellisEncoder& encoder, int64_t s, int64_t) {
      float targets[trellis_sequence], before[trellis_sequence];
      const int64_t first = tensor_.first(s), count = tensor_.count(s);
      for (int64_t c = 0; c < count_of_columns; ++c) {
        const float* h = gram.data() + c * block_inputs;
        const int64_t k = input(begin + c);
        for (int64_t i = 0; i < count; ++i) {
          before[i] = tensor_.rounded(first + i, k);
          targets[i] = before[i] + gradients[static_cast<size_t>((first + i) * block_inputs + c)] / h[c];
        }
        tensor_.choose_better(encoder, s, k, targets);
        for (int64_t i = 0; i < count; ++i) {
          float* of_row = gradients.data() + (first + i) * block_inputs;
          const float change = before[i] - tensor_.rounded(first + i, k);
          changes[static_cast<size_t>((first + i) * block_inputs + c)] = change;
          for (int64_t next = c + 1; next < count_of_columns; ++next) of_row[next] += change * h[next];
        }
      }
    });
    blas::add_product(residuals, columns_, changes.data(), block_inputs, r, columns_, rows_, rest, count_of_columns);
  }

  TrellisTensor& tensor_;
  const HessianFactor& factor_;
  const QuantizeOptions& options_;
  int64_t rows_;
  int64_t columns_;
  const float* r_;  ///< R
  int pass_ = 0;
  std::vector<float> residuals_;  ///< u of each row, [rows, columns]
};

GptqReport round_by_hessian(PackedTensor& packed, TrellisTensor& tensor, const HessianFactor& factor,
                            const QuantizeOptions& options) {
  GptqReport report{.bits = packed.scheme.bits_per_code(), .damping = factor.damping};
  report.dead_inputs = factor.inputs - factor.count();
  report.rows_kept = packed.shape[0];
  if (factor.columns.empty()) return report;
  TrellisRounder rounder(tensor, factor, options);
  report.nearest_error = report.error = rounder.error_of_nearest();
  const std::vector<uint8_t> nearest = packed.codes;
  const double error = rounder.run();
  if (error < (1 - trellis_certainty) * report.nearest_error) {
    report.error = error;
    report.rows_kept = 0;
  } else {
    packed.codes = nearest;
  }
  return report;
}

}  // namespace

PackedTensor quantize_trellis(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                              const QuantizeOptions& options) {
  PackedTensor packed;
  packed.scheme = scheme;
  packed.shape = weights.shape();
  const GroupMap map = make_group_map(scheme.granularity, packed.shape);
  std::vector<Extremes> scales = deviations(GroupedWeights(weights, map, {}, {}));
  for (Extremes& scale : scales) scale.largest = std::fabs(scale.largest) * scale_factor(scheme.quarters());
  const std::vector<Step> steps = store_scales(packed, scales, trellis_scale_to, name);
  for (const Step& step : steps)
    if (!std::isfinite(step.step * trellis_largest_value))
      fail<Error>("{}: the largest weights are too large for {}", name, to_string(scheme));
  packed.codes.resize(static_cast<size_t>(trellis_layout(packed).bytes()));

  std::optional<TrellisTensor> tensor(std::in_place, packed, weights, steps);
  const bool by_hessian = options.rounding == Rounding::gptq;
  tensor->choose_nearest(by_hessian ? OnColumns{} : options.on_columns);
  if (options.range == Range::search) {
    const std::vector<float> importance =
        options.hessian == nullptr ? std::vector<float>{} : options.hessian->diagonal();
    const std::vector<float> factors = tensor->better_factors(importance);
    for (size_t channel = 0; channel < scales.size(); ++channel) scales[channel].largest *= factors[channel];
    tensor.emplace(packed, weights, store_scales(packed, scales, trellis_scale_to, name));
    tensor->choose_nearest(by_hessian ? OnColumns{} : options.on_columns);
  }
  if (by_hessian) {
    std::optional<HessianFactor> own;
    if (options.factor == nullptr) own = factorize(*options.hessian, options.order);
    const GptqReport report = round_by_hessian(packed, *tensor, own ? *own : *options.factor, options);
    if (options.report != nullptr) *options.report = report;
  }
  return packed;
}

}  // namespace nibblenet
