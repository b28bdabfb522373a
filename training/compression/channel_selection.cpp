#include "training/compression/channel_selection.h"

#include <algorithm>
#include <cmath>

#include "engine/quant/blas.h"
#include "engine/quant/hessian_factor.h"

namespace nibblenet {
namespace {

constexpr int64_t parts_at_once = 64;

/// The remaining inputs. A row each: its row of the inverse Hessian, then its weights to all
/// outputs. Removing inputs changes both in the same way.
class Inputs {
 public:
  Inputs(TensorView<const float> weights, const HessianFactor& factor, std::span<const float> fisher,
         int64_t channel_size)
      : outputs_(weights.size(0)), channel_size_(channel_size), fisher_(fisher), columns_(factor.columns) {
    rows_.resize(static_cast<size_t>(count() * width()));
    {
      const std::vector<float> inverse = blas::inverse_of_product(factor.upper, count());
      for (int64_t i = 0; i < count(); ++i) std::copy_n(inverse.data() + i * count(), count(), row(i));
    }
    for (int64_t i = 0; i < count(); ++i)
      for (int64_t k = 0; k < outputs_; ++k) row(i)[count() + k] = weights[k * factor.inputs + column(i)];
  }

  int64_t count() const { return static_cast<int64_t>(columns_.size()); }
  int64_t column(int64_t i) const { return columns_[static_cast<size_t>(i)]; }
  float weight(int64_t i, int64_t output) const { return rows_[static_cast<size_t>(i * width() + count() + output)]; }

  /// A channel's inputs that are left.
  struct Channel {
    int64_t channel, begin, end;
    double cost = 0;  ///< the output's mean square error without them
  };

  /// The channels that are left, with their costs.
  std::vector<Channel> channels() const {
    std::vector<Channel> channels;
    for (int64_t i = 0; i < count(); ++i) {
      const int64_t channel = column(i) / channel_size_;
      if (channels.empty() || channels.back().channel != channel) channels.push_back({channel, i, i});
      channels.back().end = i + 1;
    }
#pragma omp parallel for schedule(dynamic, 16)
    for (Channel& channel : channels) channel.cost = cost_of(channel);
    if (std::ranges::any_of(channels, [](const Channel& c) { return !std::isfinite(c.cost); })) throw_indefinite();
    return channels;
  }

  /// `removed`: increasing.
  void remove(std::span<const int64_t> removed) {
    const auto few = static_cast<int64_t>(removed.size());
    std::vector<float> gone(static_cast<size_t>(few * width())), factors(static_cast<size_t>(count() * few));
    for (int64_t r = 0; r < few; ++r) {
      std::copy_n(row(removed[static_cast<size_t>(r)]), width(), gone.data() + r * width());
      for (int64_t i = 0; i < count(); ++i)
        factors[static_cast<size_t>(i * few + r)] = -row(i)[removed[static_cast<size_t>(r)]];
    }
    if (!solve(removed, factors.data(), count())) throw_indefinite();
    blas::add_product(rows_.data(), width(), factors.data(), few, gone.data(), width(), count(), width(), few);
    close_gaps(removed);
  }

 private:
  int64_t width() const { return count() + outputs_; }
  float* row(int64_t i) { return rows_.data() + i * width(); }
  const float* row(int64_t i) const { return rows_.data() + i * width(); }

  /// Replaces each row of b[n, inputs] by b A, where A inverts the inverse Hessian's block of these
  /// inputs. Returns false if rounding has left that block indefinite.
  bool solve(std::span<const int64_t> inputs, float* b, int64_t n) const {
    const auto size = static_cast<int64_t>(inputs.size());
    std::vector<float> square(static_cast<size_t>(size * size));
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j)
        square[static_cast<size_t>(i * size + j)] = row(inputs[static_cast<size_t>(i)])[inputs[static_cast<size_t>(j)]];
    return blas::solve_positive_definite(square.data(), b, size, n);
  }

  [[noreturn]] static void throw_indefinite() {
    throw Error("rounding has left the inverse Hessian indefinite; calibrate on more images, or keep more channels");
  }

  /// NaN if solve() fails. Throws nothing, because it runs in parallel threads.
  double cost_of(const Channel& channel) const {
    const int64_t size = channel.end - channel.begin;
    std::vector<int64_t> inputs(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) inputs[static_cast<size_t>(i)] = channel.begin + i;
    std::vector<float> w(static_cast<size_t>(outputs_ * size));
    for (int64_t i = 0; i < size; ++i)
      for (int64_t k = 0; k < outputs_; ++k) w[static_cast<size_t>(k * size + i)] = weight(channel.begin + i, k);
    std::vector<float> solved = w;
    if (!solve(inputs, solved.data(), outputs_)) return NAN;
    double cost = 0;
    for (int64_t k = 0; k < outputs_; ++k) {
      double error = 0;
      for (int64_t i = k * size; i < (k + 1) * size; ++i)
        error += static_cast<double>(w[static_cast<size_t>(i)]) * static_cast<double>(solved[static_cast<size_t>(i)]);
      cost += error * (fisher_.empty() ? 1.0 : static_cast<double>(fisher_[static_cast<size_t>(k)]));
    }
    return cost;
  }

  /// Drops the rows and columns of inputs, in place.
  void close_gaps(std::span<const int64_t> removed) {
    const int64_t all = width();
    std::vector<int64_t> left;
    for (int64_t i = 0; i < count(); ++i)
      if (!std::ranges::binary_search(removed, i)) left.push_back(i);
    float* to = rows_.data();
    for (const int64_t i : left) {
      const float* from = rows_.data() + i * all;
      for (const int64_t j : left) *to++ = from[j];
      to = std::copy(from + count(), from + all, to);
    }
    rows_.resize(static_cast<size_t>(to - rows_.data()));
    for (int64_t& input : left) input = column(input);
    columns_ = std::move(left);
  }

  int64_t outputs_;
  int64_t channel_size_;
  std::span<const float> fisher_;
  std::vector<int64_t> columns_;  ///< what is left of the layer's inputs
  std::vector<float> rows_;       ///< [count, count + outputs]
};

/// The mean square of the layer's output, by the Hessian that the factor is of.
double mean_square_output(TensorView<const float> weights, const HessianFactor& factor, std::span<const float> fisher) {
  const int64_t outputs = weights.size(0), n = factor.count();
  std::vector<float> live(static_cast<size_t>(outputs * n)), products(live.size());
  for (int64_t k = 0; k < outputs; ++k)
    for (int64_t j = 0; j < n; ++j)
      live[static_cast<size_t>(k * n + j)] = weights[k * factor.inputs + factor.columns[static_cast<size_t>(j)]];
  blas::multiply_by_upper(products.data(), live.data(), factor.upper.data(), outputs, n);
  double sum = 0;
  for (int64_t k = 0; k < outputs; ++k) {
    double square = 0;
    for (int64_t j = 0; j < n; ++j) {
      const auto product = static_cast<double>(products[static_cast<size_t>(k * n + j)]);
      square += product * product;
    }
    sum += square * (fisher.empty() ? 1.0 : static_cast<double>(fisher[static_cast<size_t>(k)]));
  }
  return sum;
}

/// The inputs of the `few` channels that cost least, increasing; adds what they cost.
std::vector<int64_t> cheapest(std::vector<Inputs::Channel> channels, int64_t few, double& cost) {
  std::ranges::stable_sort(channels, {}, &Inputs::Channel::cost);
  std::vector<int64_t> inputs;
  for (const Inputs::Channel& channel : std::span(channels).first(static_cast<size_t>(few))) {
    for (int64_t i = channel.begin; i < channel.end; ++i) inputs.push_back(i);
    cost += channel.cost;
  }
  std::ranges::sort(inputs);
  return inputs;
}

/// The channels of the inputs that are left; where there are fewer than `count`, those of dead
/// inputs fill up.
std::vector<int64_t> channels_left(const Inputs& inputs, int64_t channel_size, int64_t channels, int64_t count) {
  std::vector<bool> left(static_cast<size_t>(channels));
  for (int64_t i = 0; i < inputs.count(); ++i) left[static_cast<size_t>(inputs.column(i) / channel_size)] = true;
  int64_t missing = count - std::ranges::count(left, true);
  std::vector<int64_t> kept;
  for (int64_t c = 0; c < channels; ++c)
    if (left[static_cast<size_t>(c)] || missing-- > 0) kept.push_back(c);
  return kept;
}

/// weights[K, C inputs] of some channels: updated for inputs that remain, unchanged for dead ones.
Tensor<float> weights_left(TensorView<const float> weights, const Inputs& inputs, std::span<const int64_t> channels,
                           int64_t channel_size) {
  const int64_t outputs = weights.size(0), all = weights.shape().inner_elements();
  const int64_t columns = static_cast<int64_t>(channels.size()) * channel_size;
  Tensor<float> result(host_memory(), {outputs, columns}, MemoryCategory::data);
  int64_t at = 0;
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t column = channels[static_cast<size_t>(j / channel_size)] * channel_size + j % channel_size;
    const bool live = at < inputs.count() && inputs.column(at) == column;
    for (int64_t k = 0; k < outputs; ++k)
      result.data()[k * columns + j] = live ? inputs.weight(at, k) : weights[k * all + column];
    at += live ? 1 : 0;
  }
  return result;
}

}  // namespace

KeptChannels keep_channels(TensorView<const float> weights, const Hessian& hessian, std::span<const float> fisher,
                           int64_t channels, int64_t count, const OnRemoval& on_removal) {
  if (count < 1 || count > channels) fail<UsageError>("cannot keep {} of {} channels", count, channels);
  const int64_t inputs_before = weights.shape().inner_elements();
  if (inputs_before != hessian.inputs || inputs_before % channels != 0)
    fail<ShapeError>("weights {} in {} channels and a Hessian of {} inputs", to_string(weights.shape()), channels,
                     hessian.inputs);
  if (!fisher.empty() && static_cast<int64_t>(fisher.size()) != weights.size(0))
    fail<ShapeError>("weights {} and a Fisher diagonal of {} outputs", to_string(weights.shape()), fisher.size());
  const int64_t channel_size = inputs_before / channels;
  const HessianFactor factor = factorize(hessian, ColumnOrder::natural);
  Inputs inputs(weights, factor, fisher, channel_size);
  double cost = 0;
  int64_t before = 0;
  for (;;) {
    std::vector<Inputs::Channel> left = inputs.channels();
    const auto now = static_cast<int64_t>(left.size());
    before = std::max(before, now);
    if (on_removal) on_removal(before - now, std::max<int64_t>(before - count, 0));
    if (now <= count) break;
    inputs.remove(cheapest(std::move(left), std::clamp<int64_t>(now / parts_at_once, 1, now - count), cost));
  }
  KeptChannels kept{.channels = channels_left(inputs, channel_size, channels, count)};
  kept.weights = weights_left(weights, inputs, kept.channels, channel_size);
  const double square = mean_square_output(weights, factor, fisher);
  kept.error = square > 0 ? cost / square : 0;
  return kept;
}

}  // namespace nibblenet
