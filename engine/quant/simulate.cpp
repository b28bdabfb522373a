#include "engine/quant/simulate.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <ranges>
#include <vector>

#include "engine/quant/magnitude_order.h"
#include "engine/quant/quantizer.h"
#include "engine/quant/text.h"

namespace nibblenet {
namespace {

constexpr std::string_view prefix = "simulated-";

// In the order of the enum: traits_of() indexes it.
constexpr std::array<SimulationTraits, 5> simulations{{
    {Simulation::linear, "simulated-linear", 8, 8, "int8 by truncation with wrap-around, one scale a tensor"},
    {Simulation::linear_row, "simulated-linear-row", 8, 8, "int8 by truncation with wrap-around, one scale a row"},
    {Simulation::fp8, "simulated-fp8", 8, 8, "3 mantissa bits by truncation, exponents of 5 bits, one maximum a row"},
    {Simulation::dynamic_tree, "simulated-dynamic-tree", 3, 8,
     "dynamic tree by truncation, 7 fraction bits near the maximum at any width, one maximum a row"},
    {Simulation::stable_embedding, "simulated-stable-embedding", 8, 8,
     "dynamic tree over magnitude-sorted blocks, each kernel slice by itself"},
}};

constexpr std::array<LinearRepairTraits, 5> linear_repairs{{
    {&LinearRepairs::overflow, "overflow"},
    {&LinearRepairs::truncation, "truncation"},
    {&LinearRepairs::range, "range"},
    {&LinearRepairs::zero_point, "zero-point"},
    {&LinearRepairs::precision, "precision"},
}};

const SimulationTraits& traits_of(Simulation simulation) {
  const auto index = static_cast<size_t>(simulation);
  if (index >= simulations.size()) fail<UsageError>("unknown simulation {}", index);
  return simulations[index];
}

std::string widths(const SimulationTraits& traits) {
  return traits.min_bits == traits.max_bits ? fmt::format("{}:{}", traits.name, traits.max_bits)
                                            : fmt::format("{}:{}…{}", traits.name, traits.min_bits, traits.max_bits);
}

std::string supported() { return fmt::format("{}", fmt::join(std::views::transform(simulations, widths), ", ")); }

/// Calls work(begin, count) for each run of the last dimension, on all threads.
template <class Work>
void for_each_row(const Shape& shape, Work work) {
  const int64_t length = shape.sizes().back();
  const int64_t rows = shape.elements() / length;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) work(row * length, length);
}

float absolute_maximum(const float* weights, int64_t count) {
  float maximum = 0;
  for (int64_t i = 0; i < count; ++i) maximum = std::max(maximum, std::fabs(weights[i]));
  return maximum;
}

// ---- linear

/// Converts to int8 as x86 does: truncates to int32 and keeps the low byte. Numbers outside int32
/// become its lowest value, whose low byte is 0.
template <class Real>
Real wrapped(Real value) {
  if (!(value >= -2147483648.0 && value < 2147483648.0)) return 0;
  return static_cast<Real>(static_cast<int8_t>(static_cast<int32_t>(value) & 0xFF));
}

/// Rounds to int8 and back by one scale, in float as in the notebooks, or in double.
template <class Real>
class LinearQuantizer {
 public:
  LinearQuantizer(std::span<const float> weights, LinearRepairs repairs) : repairs_(repairs) {
    auto [min, max] = std::ranges::minmax(weights);
    if (repairs.range) {
      min = std::min(min, 0.0F);
      max = std::max(max, 0.0F);
    }
    const auto lowest = static_cast<Real>(min);
    // PyTorch divides a number by a tensor as 1 / tensor * number: two roundings.
    scale_ = Real{1} / (static_cast<Real>(max) - lowest) * Real{255};
    if (repairs.zero_point && std::isfinite(scale_)) zero_point_ = std::nearbyint(Real{-128} - lowest * scale_);
  }
  float operator()(float weight) const {
    // Equal weights have an infinite scale, and the int8 of an infinity, or of 0 * Inf, is 0. A
    // range beyond float's has the scale 0; there the notebooks divide 0 by 0.
    if (!std::isfinite(scale_) || scale_ == 0) return 0.0F;
    const Real scaled = static_cast<Real>(weight) * scale_ + zero_point_;
    const Real whole = repairs_.truncation ? std::nearbyint(scaled) : std::trunc(scaled);
    const Real code = repairs_.overflow ? std::clamp(whole, Real{-128}, Real{127}) : wrapped(whole);
    return static_cast<float>((code - zero_point_) / scale_);
  }

 private:
  LinearRepairs repairs_;
  Real scale_ = 0;
  Real zero_point_ = 0;
};

template <class Real>
void simulate_linear(TensorView<float> out, TensorView<const float> weights, const SimulatedScheme& scheme) {
  if (scheme.simulation == Simulation::linear_row) {
    for_each_row(weights.shape(), [&](int64_t begin, int64_t count) {
      const LinearQuantizer<Real> quantizer({weights.data() + begin, static_cast<size_t>(count)}, scheme.repairs);
      for (int64_t i = begin; i < begin + count; ++i) out[i] = quantizer(weights[i]);
    });
    return;
  }
  const LinearQuantizer<Real> quantizer(weights.span(), scheme.repairs);
#pragma omp parallel for
  for (int64_t i = 0; i < weights.elements(); ++i) out[i] = quantizer(weights[i]);
}

void simulate_linear(TensorView<float> out, TensorView<const float> weights, const SimulatedScheme& scheme) {
  if (scheme.repairs.precision) return simulate_linear<double>(out, weights, scheme);
  simulate_linear<float>(out, weights, scheme);
}

// ---- fp8

/// The upper three mantissa bits of x at its exponent, clamped to -14…15. Subnormal numbers and 0
/// get a leading one that they do not have.
float simulated_fp8(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t exponent = std::clamp(bits >> 23 & 0xFF, 127U - 14U, 127U + 15U);
  return std::bit_cast<float>((bits & 0x80700000U) | exponent << 23);
}

// ---- dynamic tree

/// 10^-e as Python's 10**-e gives it: the nearest double of the decimal.
constexpr std::array<double, 6> negative_powers_of_ten = {1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5};

struct Decimal {
  double fraction;  ///< in [0.1, 1], or 0
  int exponent;     ///< x10 so many times
};

/// Decimal exponent and fraction in double, as in the notebooks' Python. Zero, for which they loop
/// for ever, gets `most`.
Decimal decimal_of(float x, int most) {
  double fraction = std::fabs(static_cast<double>(x));
  if (fraction == 0) return {0, most};
  int exponent = 0;
  for (; fraction < 0.1; ++exponent) fraction *= 10;
  return {fraction, std::min(exponent, most)};
}

/// Rounds `x`, a weight over its group's maximum. `bits` is the claimed width.
float simulated_tree(float x, int bits) {
  const auto [fraction, exponent] = decimal_of(x, bits - 1);
  // A zero from a cut-off exponent keeps the sign. A zero from fraction bits is an integer in
  // Python and has no sign.
  if (exponent != 0 && exponent >= bits - 2) return x < 0 ? -0.0F : 0.0F;
  const int fraction_bits = exponent == 0 ? 7 : bits - 2 - exponent;
  const double steps = 1 << fraction_bits;
  const double kept = std::min(std::floor(fraction * steps), steps - 1) / steps;
  if (kept == 0) return 0.0F;
  return static_cast<float>((x < 0 ? -kept : kept) * negative_powers_of_ten[static_cast<size_t>(exponent)]);
}

/// Divides each row by its maximum, applies `round`, and multiplies again.
template <class Round>
void simulate_rows(TensorView<float> out, TensorView<const float> weights, Round round) {
  for_each_row(weights.shape(), [&](int64_t begin, int64_t count) {
    const float maximum = absolute_maximum(weights.data() + begin, count);
    for (int64_t i = begin; i < begin + count; ++i) out[i] = maximum > 0 ? round(weights[i] / maximum) * maximum : 0.0F;
  });
}

// ---- stable embedding

void simulate_sorted_blocks(float* out, std::span<const float> weights, int64_t block) {
  const std::vector<uint32_t> blocks = magnitude_blocks(weights, block);
  std::vector<float> maxima((weights.size() + static_cast<size_t>(block) - 1) / static_cast<size_t>(block));
  for (size_t i = 0; i < weights.size(); ++i) maxima[blocks[i]] = std::max(maxima[blocks[i]], std::fabs(weights[i]));
#pragma omp parallel for
  for (size_t i = 0; i < weights.size(); ++i) {
    const float maximum = maxima[blocks[i]];
    out[i] = maximum > 0 ? simulated_tree(weights[i] / maximum, 8) * maximum : 0.0F;
  }
}

void simulate_stable_embedding(TensorView<float> out, TensorView<const float> weights) {
  const Shape& shape = weights.shape();
  if (shape.rank() == 2) return simulate_sorted_blocks(out.data(), weights.span(), shape[0]);
  const int64_t plane = shape[2] * shape[3];
#pragma omp parallel for
  for (int64_t first = 0; first < weights.elements(); first += plane)
    simulate_sorted_blocks(out.data() + first, {weights.data() + first, static_cast<size_t>(plane)}, shape[2]);
}

// ---- what the values need

/// Counts distinct values by open addressing. There is one per thread, since rows are many and
/// short.
class DistinctCounter {
 public:
  explicit DistinctCounter(int64_t most) : slots_(std::bit_ceil(static_cast<size_t>(most) * 2)) {}
  int64_t count(std::span<const float> values) {
    std::ranges::fill(slots_, 0);
    int64_t distinct = 0;
    for (const float value : values) distinct += insert(value == 0 ? 0.0F : value) ? 1 : 0;
    return distinct;
  }

 private:
  bool insert(float value) {
    const uint64_t key = std::bit_cast<uint32_t>(value) | uint64_t{1} << 32;  // never 0, which is an empty slot
    size_t at = key * 0x9E3779B97F4A7C15U >> 32 & (slots_.size() - 1);
    while (slots_[at] != 0 && slots_[at] != key) at = (at + 1) & (slots_.size() - 1);
    const bool is_new = slots_[at] == 0;
    slots_[at] = key;
    return is_new;
  }
  std::vector<uint64_t> slots_;
};

}  // namespace

std::span<const SimulationTraits> simulation_table() { return simulations; }

std::span<const LinearRepairTraits> linear_repair_table() { return linear_repairs; }

LinearRepairs parse_linear_repairs(std::string_view text) {
  LinearRepairs repairs;
  for (const std::string_view name : split(text, ',')) {
    bool known = name == "all";
    for (const LinearRepairTraits& repair : linear_repairs) {
      if (name != repair.name && name != "all") continue;
      repairs.*repair.flag = known = true;
    }
    if (!known)
      fail<UsageError>("unknown repair '{}' of the linear simulations; supported: {}, all", name,
                       fmt::join(std::views::transform(linear_repairs, &LinearRepairTraits::name), ", "));
  }
  return repairs;
}

bool names_simulation(std::string_view text) { return text.starts_with(prefix); }

SimulatedScheme parse_simulated_scheme(std::string_view text) {
  const size_t plus = std::min(text.find('+'), text.size());
  const std::vector<std::string_view> parts = split(text.substr(0, plus), ':');
  for (const SimulationTraits& traits : simulations) {
    if (parts[0] != traits.name || parts.size() > 2) continue;
    const int64_t bits = parts.size() == 1 ? traits.max_bits : parse_integer(parts[1]).value_or(-1);
    if (bits < traits.min_bits || bits > traits.max_bits) continue;
    SimulatedScheme scheme{traits.simulation, static_cast<int>(bits)};
    if (plus < text.size()) {
      std::string repairs(text.substr(plus + 1));
      std::ranges::replace(repairs, '+', ',');
      scheme.repairs = parse_linear_repairs(repairs);
    }
    validate(scheme);
    return scheme;
  }
  fail<UsageError>("unknown simulated scheme '{}'; supported: {}", text, supported());
}

std::string to_string(const SimulatedScheme& scheme) {
  std::string text = fmt::format("{}:{}", traits_of(scheme.simulation).name, scheme.bits);
  for (const LinearRepairTraits& repair : linear_repairs)
    if (scheme.repairs.*repair.flag) text += fmt::format("+{}", repair.name);
  return text;
}

void validate(const SimulatedScheme& scheme) {
  const SimulationTraits& traits = traits_of(scheme.simulation);
  if (scheme.bits < traits.min_bits || scheme.bits > traits.max_bits)
    fail<UsageError>("no simulation {}; supported: {}", to_string(scheme), supported());
  const bool is_linear = scheme.simulation == Simulation::linear || scheme.simulation == Simulation::linear_row;
  if (!is_linear && scheme.repairs != LinearRepairs{})
    fail<UsageError>("{}: only simulated-linear and simulated-linear-row can be repaired", to_string(scheme));
}

void simulate(TensorView<float> out, TensorView<const float> weights, const SimulatedScheme& scheme,
              std::string_view name) {
  validate(scheme);
  make_group_map({Granularity::Kind::row}, weights.shape());  // refuses what is no weight tensor
  expect_shape(out.shape(), weights.shape(), "simulated weights");
  expect_finite(weights, name);
  switch (scheme.simulation) {
    case Simulation::linear:
    case Simulation::linear_row:
      return simulate_linear(out, weights, scheme);
    case Simulation::fp8:
      return simulate_rows(out, weights, simulated_fp8);
    case Simulation::dynamic_tree:
      return simulate_rows(out, weights, [bits = scheme.bits](float x) { return simulated_tree(x, bits); });
    case Simulation::stable_embedding:
      return simulate_stable_embedding(out, weights);
  }
}

ExponentCounts exponent_counts(TensorView<const float> weights, int bits, std::string_view name) {
  validate({Simulation::dynamic_tree, bits});
  const GroupMap map = make_group_map({Granularity::Kind::row}, weights.shape());
  expect_finite(weights, name);
  std::array<int64_t, 8> total{};
  int64_t* counts = total.data();
#pragma omp parallel for reduction(+ : counts[:8])
  for (int64_t row = 0; row < map.groups; ++row) {
    const float* begin = weights.data() + row * map.last;
    const float maximum = absolute_maximum(begin, map.last);
    if (maximum == 0) counts[0] += map.last;
    for (int64_t i = 0; maximum > 0 && i < map.last; ++i) ++counts[decimal_of(begin[i] / maximum, bits - 1).exponent];
  }
  return {total};
}

ValueNeed bits_needed(TensorView<const float> simulated) {
  const GroupMap map = make_group_map({Granularity::Kind::row}, simulated.shape());
  int64_t most = 0;
#pragma omp parallel
  {
    DistinctCounter counter(map.last);
#pragma omp for reduction(max : most)
    for (int64_t row = 0; row < map.groups; ++row)
      most = std::max(most, counter.count({simulated.data() + row * map.last, static_cast<size_t>(map.last)}));
  }
  return {most, static_cast<int>(std::bit_width(static_cast<uint64_t>(most - 1)))};
}

}  // namespace nibblenet
