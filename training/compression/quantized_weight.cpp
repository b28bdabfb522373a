#include "training/compression/quantized_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/quant/bits.h"
#include "engine/quant/hadamard.h"
#include "engine/quant/quantizer.h"
#include "layers/network/network.h"

namespace nibblenet {
namespace {

constexpr float largest_f16 = 65504.0F;

/// Distance between neighbours of a codebook with evenly spread values, and its largest value in
/// that unit: what LSQ calls 1 and Q for integers.
struct Spacing {
  double unit;
  double levels;

  explicit Spacing(const Codebook& codebook) {
    const auto value = [&](int rank) {
      return static_cast<double>(codebook.values[codebook.ordered_codes[static_cast<size_t>(rank)]]);
    };
    const double lowest = value(0), highest = value(codebook.count - 1);
    unit = highest > lowest ? (highest - lowest) / (codebook.count - 1) : 1.0;
    levels = std::max(1.0, std::max(std::fabs(lowest), std::fabs(highest)) / unit);
  }
};

/// Whether a scale has changed its sign or become 0, which it must not.
bool crosses_zero(float before, float after) {
  return before != 0 && (after == 0 || std::signbit(after) != std::signbit(before));
}

/// Codes as numbers, one a weight; of trellis strings the ranks of the values, which codebook_of()
/// lists.
std::vector<float> unpacked_codes(const PackedTensor& packed) {
  const int64_t channels = packed.shape[0], elements = packed.shape.inner_elements();
  const bool trellis = packed.scheme.is_trellis();
  const TrellisLayout strings = trellis ? trellis_layout(packed) : TrellisLayout{};
  const auto code = [&](int64_t channel, int64_t k) {
    if (trellis) return trellis_value_at(packed.codes.data(), strings, channel, k) + trellis_largest_value;
    return static_cast<int>(read_field(packed.codes.data() + channel * packed.code_stride(), k, packed.scheme.bits));
  };
  std::vector<float> codes(static_cast<size_t>(channels * elements));
#pragma omp parallel for
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t k = 0; k < elements; ++k)
      codes[static_cast<size_t>(channel * elements + k)] = static_cast<float>(code(channel, k));
  return codes;
}

/// "linear, fp8-e4m3, …"
std::string trainable_methods() {
  std::string names;
  for (const MethodTraits& traits : scalar_methods())
    if (!traits.sorted) names += fmt::format("{}{}", names.empty() ? "" : ", ", traits.name);
  return names;
}

void pin_zero(std::vector<float>& values) {
  if (values.empty()) return;
  *std::ranges::min_element(values, {}, [](float value) { return std::fabs(value); }) = 0.0F;
}

}  // namespace

void expect_trainable(const Scheme& scheme, std::string_view name, bool codes_stay) {
  if (scheme.is_trellis() && !codes_stay)
    fail<UsageError>("{}: the strings of {} cannot be trained, its scales can: --learn scales", name,
                     to_string(scheme));
  if (scheme.is_rotated() && !codes_stay)
    fail<UsageError>("{}: the rotated weights of {} cannot be trained, their scales can: --learn scales", name,
                     to_string(scheme));
  if (traits_of(scheme.method).sorted || scheme.zero_point)
    fail<UsageError>("{}: {} cannot be trained; supported, without zero-point: {}", name, to_string(scheme),
                     trainable_methods());
}

QuantizedWeight::QuantizedWeight(Backend& backend, const PackedTensor& packed, TensorView<const float> master,
                                 bool keep_zeros, std::string name)
    : QuantizedWeight(backend, packed, master, keep_zeros, false, std::move(name)) {}

QuantizedWeight::QuantizedWeight(Backend& backend, const PackedTensor& packed, TensorView<const float> master,
                                 bool keep_zeros, bool codes_stay, std::string name)
    : backend_(backend),
      training_(backend.training()),
      name_(std::move(name)),
      scheme_(packed.scheme),
      groups_(make_group_map(packed.scheme.granularity, packed.shape)),
      keep_zeros_(keep_zeros),
      learns_values_(!packed.codebook.empty()),
      rotation_(rotation_of_weights(packed.scheme, packed.shape)),
      master_(backend, packed.shape, MemoryCategory::weights),
      values_(packed.codebook),
      value_momenta_(packed.codebook.size()),
      steps_(backend, {groups_.groups}, MemoryCategory::optimizer),
      dsteps_(backend, {groups_.groups}, MemoryCategory::gradients) {
  expect_trainable(scheme_, name_, codes_stay);
  expect_shape(master.shape(), packed.shape, name_);
  backend.copy_from_host(master_.data(), master.data(), master.span().size_bytes());
  for (int64_t group = 0; group < packed.groups(); ++group) scales_.push_back(packed.scale(group));
  scale_momenta_.resize(scales_.size());
  if (keep_zeros_) pin_zero(values_);
  if (learns_values_) dcodebook_ = Tensor<float>(backend, {256}, MemoryCategory::gradients);
  codebook_ = learns_values_ ? make_codebook(values_, scheme_.bits, 1.0F) : codebook_of(packed);
  upload_steps();
}

QuantizedWeight::QuantizedWeight(Backend& backend, const PackedTensor& packed, std::string name)
    : QuantizedWeight(backend, packed, TensorView<const float>(unpacked_codes(packed).data(), packed.shape), false,
                      true, std::move(name)) {
  codes_ = packed.codes;
  scale_adam_ = Adam(scales_.size());
  value_adam_ = Adam(values_.size());
}

RoundingRule QuantizedWeight::rule() const {
  return {groups_, codebook_, std::as_const(steps_).view(), !codes_.empty()};
}

float QuantizedWeight::in_range(float scale) const {
  return scheme_.scale == ScaleType::f16 ? std::clamp(scale, -largest_f16, largest_f16) : scale;
}

float QuantizedWeight::stored_scale(size_t group) const {
  return scheme_.scale == ScaleType::f16 ? f16_to_f32(f32_to_f16(scales_[group])) : scales_[group];
}

void QuantizedWeight::upload_steps() {
  std::vector<float> steps(scales_.size());
  for (size_t group = 0; group < steps.size(); ++group) steps[group] = stored_scale(group) / codebook_.scale_to;
  backend_.copy_from_host(steps_.data(), steps.data(), steps.size() * sizeof(float));
}

void QuantizedWeight::rotate(TensorView<float> weights) const {
  if (rotation_) backend_.hadamard(weights, weights, rotation_);
}

void QuantizedWeight::round(TensorView<float> values) {
  training_.round_weights(values, master_.view(), rule());
  rotate(values);
}

void QuantizedWeight::step(TensorView<float> dweights, TensorView<float> momentum, const SgdParameters& parameters) {
  training_.round_weights_backward(dweights, dsteps_.view(), dcodebook_.view(), std::as_const(master_).view(), rule());
  training_.sgd_step(master_.view(), momentum, dweights, parameters);

  const std::vector<float> dsteps = backend_.to_host(dsteps_.view());
  if (learns_values_) update_values(backend_.to_host(dcodebook_.view()), parameters);
  update_scales(dsteps, parameters);
  upload_steps();
}

void QuantizedWeight::step_scales(TensorView<float> dweights, double learning_rate, int64_t number) {
  rotate(dweights);
  training_.round_weights_backward(dweights, dsteps_.view(), dcodebook_.view(), std::as_const(master_).view(), rule());
  const std::vector<float> dsteps = backend_.to_host(dsteps_.view());
  if (learns_values_) {
    std::vector<float> dvalues = backend_.to_host(dcodebook_.view());
    for (size_t code = 0; code < values_.size(); ++code)
      if (values_[code] == 0) dvalues[code] = 0;
    value_adam_.step(values_, std::span(dvalues).first(values_.size()), learning_rate, number);
    for (size_t code = 1; code < values_.size(); ++code) values_[code] = std::max(values_[code], values_[code - 1]);
    codebook_ = make_codebook(values_, scheme_.bits, 1.0F);
  }
  const std::vector<float> before = scales_;
  scale_adam_.step(scales_, dsteps, learning_rate, number);
  for (size_t group = 0; group < scales_.size(); ++group) {
    scales_[group] = in_range(scales_[group]);
    if (crosses_zero(before[group], scales_[group])) scales_[group] = before[group] / 2;
  }
  upload_steps();
}

/// LSQ's gradient scale 1 / sqrt(N Q), and the change of variable from its step, in which
/// neighbouring values lie 1 apart, to what is stored: scale = step scale_to / unit, so the same
/// step down the gradient is (scale_to / unit)^2 as long. A scale stays on its side of 0: what
/// would cross it is halved.
void QuantizedWeight::update_scales(std::span<const float> dsteps, const SgdParameters& parameters) {
  const Spacing spacing(codebook_);
  const auto scale_to = static_cast<double>(codebook_.scale_to);
  const double weights = static_cast<double>(master_.elements()) / static_cast<double>(scales_.size());
  const double per_unit = scale_to / spacing.unit;
  const auto factor = static_cast<float>(per_unit * per_unit / scale_to / std::sqrt(weights * spacing.levels));
  for (size_t group = 0; group < scales_.size(); ++group) {
    float& momentum = scale_momenta_[group];
    float& scale = scales_[group];
    momentum = parameters.momentum * momentum + factor * dsteps[group];
    float moved = in_range(scale - parameters.learning_rate * momentum);
    if (crosses_zero(scale, moved)) {
      moved = scale / 2;
      momentum = 0;
    }
    scale = moved;
  }
}

/// In units of weights a value is value x step, whose gradient is dcodebook / step. It moves by the
/// mean of what its weights would, not their sum (Han 2016) nor LSQ's sum over the square root of
/// their number: behind a ReLU the gradients of a layer's weights agree so well that both drive all
/// values of a codebook to one side. Values stay in ascending order.
void QuantizedWeight::update_values(std::span<const float> dcodebook, const SgdParameters& parameters) {
  const double square = mean_square_step();
  if (!(square > 0)) return;
  const double of_a_value = static_cast<double>(master_.elements()) / static_cast<double>(values_.size());
  const auto factor = static_cast<float>(1.0 / (square * of_a_value));
  std::vector<std::pair<float, float>> moved(values_.size());  // and their momenta
  for (size_t code = 0; code < values_.size(); ++code) {
    auto& [value, momentum] = moved[code];
    const bool pinned = keep_zeros_ && values_[code] == 0.0F;
    momentum = pinned ? 0.0F : parameters.momentum * value_momenta_[code] + factor * dcodebook[code];
    value = values_[code] - parameters.learning_rate * momentum;
  }
  std::ranges::stable_sort(moved, {}, &std::pair<float, float>::first);
  if (!std::isfinite(moved.front().first + moved.back().first))
    fail<Error>("{}: the codebook's values are no longer numbers: lower --lr", name_);
  for (size_t code = 0; code < values_.size(); ++code) std::tie(values_[code], value_momenta_[code]) = moved[code];
  codebook_ = make_codebook(values_, scheme_.bits, 1.0F);
}

double QuantizedWeight::mean_square_step() const {
  double sum = 0;
  for (size_t group = 0; group < scales_.size(); ++group) {
    const double step = static_cast<double>(stored_scale(group) / codebook_.scale_to);
    sum += step * step;
  }
  return sum / static_cast<double>(scales_.size());
}

PackedTensor QuantizedWeight::packed() const {
  PackedTensor packed;
  packed.scheme = scheme_;
  packed.shape = master_.shape();
  packed.codebook = values_;
  const size_t bytes = scheme_.scale == ScaleType::f16 ? 2 : 4;
  packed.scales.resize(scales_.size() * bytes);
  for (size_t group = 0; group < scales_.size(); ++group) {
    const uint16_t half = f32_to_f16(scales_[group]);
    const void* source = bytes == 2 ? static_cast<const void*>(&half) : &scales_[group];
    std::memcpy(packed.scales.data() + group * bytes, source, bytes);
  }
  if (codes_.empty()) {
    const std::vector<float> master = backend_.to_host(master_.view());
    encode_nearest(packed, {master.data(), master_.shape()});
  } else {
    packed.codes = codes_;
  }
  validate(packed, name_);
  return packed;
}

void QuantizedWeight::save(StateDict& masters, StateDict& momenta) const {
  add_vector(masters, name_ + ".scales", scales_);
  if (!codes_.empty()) {
    scale_adam_.save(momenta, name_ + ".scales");
    value_adam_.save(momenta, name_ + ".codebook");
    return;
  }
  masters.parameters.push_back(read_back(backend_, name_, master_.view()));
  add_vector(momenta, name_ + ".scales", scale_momenta_);
  add_vector(momenta, name_ + ".codebook", value_momenta_);
}

void QuantizedWeight::restore(const StateDict& masters, const StateDict& momenta) {
  load_vector(masters, name_ + ".scales", scales_);
  if (codes_.empty()) {
    load_vector(momenta, name_ + ".scales", scale_momenta_);
    load_vector(momenta, name_ + ".codebook", value_momenta_);
  } else {
    scale_adam_.restore(momenta, name_ + ".scales");
    value_adam_.restore(momenta, name_ + ".codebook");
  }
  upload_steps();
}

}  // namespace nibblenet
