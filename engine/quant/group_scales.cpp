#include "engine/quant/group_scales.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/core/random.h"
#include "engine/quant/kmeans.h"

namespace nibblenet {
namespace {

/// The scale of a group before it is rounded to its stored type.
float exact_scale(const Extremes& group, const Scheme& scheme) {
  const float scale = scheme.zero_point ? group.highest - group.lowest : group.largest;
  return scheme.sign == ScaleSign::absolute ? std::fabs(scale) : scale;
}

/// The scale of a group, rounded to its stored type.
float stored_scale(const Extremes& group, const Scheme& scheme, float scale_to) {
  float scale = exact_scale(group, scheme);
  if (scheme.scale == ScaleType::f16) return f16_to_f32(f32_to_f16(scale));
  // Near the end of float32's range, the outermost value may decode to infinity.
  while (std::isfinite(scale) && !std::isfinite(scale_to * (scale / scale_to))) scale = std::nextafter(scale, 0.0F);
  return scale;
}

Extremes scaled(const Extremes& group, float factor) {
  return {.lowest = group.lowest * factor, .highest = group.highest * factor, .largest = group.largest * factor};
}

/// The grid's factors. 1 comes first, so that it wins ties.
std::vector<float> factors_of(const Scheme& scheme) {
  constexpr int steps = 32;
  std::vector<float> factors{1.0F};
  for (int i = 1; i <= steps; ++i) {
    const int distance = (i + 1) / 2;
    if (!traits_of(scheme.method).trained)
      factors.push_back(1.0F - 0.8F * static_cast<float>(i) / steps);
    else
      factors.push_back(1.0F + (i % 2 == 0 ? 0.025F : -0.025F) * static_cast<float>(distance));
  }
  return factors;
}

/// Sum of importance (weight - value)^2. Returns early with any sum above `limit`.
double error_of(std::span<const float> weights, std::span<const float> importance, const Step& step,
                const Codebook& codebook, bool affine, double limit) {
  constexpr size_t stretch = 1024;
  double error = 0;
  for (size_t begin = 0; begin < weights.size() && error <= limit; begin += stretch) {
    const size_t end = std::min(weights.size(), begin + stretch);
    for (size_t i = begin; i < end; ++i) {
      const float value = codebook.values[code_of(weights[i], step, codebook, affine)];
      const double difference =
          static_cast<double>(weights[i]) - static_cast<double>(reconstruct(value, step.zero_point, step.step));
      error += (importance.empty() ? 1.0 : static_cast<double>(importance[i])) * difference * difference;
    }
  }
  return error;
}

/// Rounds values to multiples of a unit, at most `largest_multiple` times it, so that products of
/// bytes hold them exactly. Rounded only there, all weights of a code would be wrong by the same
/// amount, and such errors add up. Of units between largest / largest_multiple and 1.5 times that,
/// takes the one of the least sum of weight (sample - value)^2, which rounding raises by the
/// value's share of the samples times the square of its own change, since it is their mean.
void round_to_bytes(std::vector<float>& values, std::span<const Sample> samples, int largest_multiple) {
  constexpr int fractions = 4;
  const float largest = std::fabs(*std::ranges::max_element(values, {}, [](float value) { return std::fabs(value); }));
  if (!std::isnormal(largest / static_cast<float>(largest_multiple))) return;
  const auto rounded = [](float value, float unit) { return std::nearbyint(value / unit) * unit; };
  std::vector<double> shares(values.size());
  for (const Sample& sample : samples) {
    const auto above = static_cast<size_t>(std::ranges::lower_bound(values, sample.value) - values.begin());
    const bool lower =
        above == values.size() || (above > 0 && sample.value - values[above - 1] < values[above] - sample.value);
    shares[lower ? above - 1 : above] += static_cast<double>(sample.weight);
  }
  float best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int whole = fractions * largest_multiple; whole * 3 >= fractions * largest_multiple * 2; --whole) {
    const float unit = largest * static_cast<float>(fractions) / static_cast<float>(whole);
    double cost = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double change = static_cast<double>(rounded(values[i], unit)) - static_cast<double>(values[i]);
      cost += shares[i] * change * change;
    }
    if (cost < least) least = cost, best = unit;
  }
  for (float& value : values) value = rounded(value, best);
}

/// Clamps values so that none overflows when multiplied by the largest step.
void keep_finite(std::vector<float>& values, float largest_step) {
  for (float& value : values)
    while (!std::isfinite(value * largest_step)) value = std::nextafter(value, 0.0F);
}

}  // namespace

GroupScale scale_of(const Extremes& group, const Scheme& scheme, float scale_to) {
  GroupScale result{.scale = stored_scale(group, scheme, scale_to)};
  result.step.step = result.scale / scale_to;
  if (scheme.zero_point && result.step.step != 0)
    result.step.zero_point = std::clamp(std::nearbyint(-group.lowest / result.step.step), 0.0F, scale_to);
  return result;
}

std::vector<Step> store_scales(PackedTensor& packed, const std::vector<Extremes>& extremes, float scale_to,
                               std::string_view name) {
  const Scheme& scheme = packed.scheme;
  const size_t scale_bytes = scheme.scale == ScaleType::f16 ? 2 : 4;
  packed.scales.resize(extremes.size() * scale_bytes);
  if (scheme.zero_point) packed.zero_points.resize(extremes.size());

  // A group this much smaller than the largest does not matter: its scale may become 0.
  constexpr float negligible = 1e-3F;
  float largest = 0;
  for (const Extremes& group : extremes) largest = std::max(largest, std::fabs(exact_scale(group, scheme)));

  std::vector<Step> steps(extremes.size());
  for (size_t group = 0; group < extremes.size(); ++group) {
    const GroupScale chosen = scale_of(extremes[group], scheme, scale_to);
    if (!std::isfinite(chosen.scale))
      fail<Error>("{}: the scale of group {} is beyond the range of {}; supported: {}", name, group,
                  to_string(scheme.scale), scheme.scale == ScaleType::f16 ? "f32" : "schemes without zero-point");
    if (chosen.scale == 0 && std::fabs(exact_scale(extremes[group], scheme)) > negligible * largest)
      fail<Error>("{}: the scale of group {} is {:g}, which {} rounds to 0; supported: f32", name, group,
                  exact_scale(extremes[group], scheme), to_string(scheme.scale));
    const uint16_t half = f32_to_f16(chosen.scale);
    const void* bytes = scheme.scale == ScaleType::f16 ? static_cast<const void*>(&half) : &chosen.scale;
    std::memcpy(packed.scales.data() + group * scale_bytes, bytes, scale_bytes);
    steps[group] = chosen.step;
    if (scheme.zero_point) packed.zero_points[group] = static_cast<uint8_t>(chosen.step.zero_point);
  }
  return steps;
}

std::vector<Extremes> deviations(const GroupedWeights& weights) {
  std::vector<Extremes> result(static_cast<size_t>(weights.groups()));
#pragma omp parallel for
  for (int64_t group = 0; group < weights.groups(); ++group) {
    const std::span<const float> own = weights.weights(group);
    double squares = 0;
    float largest = 0;
    for (const float weight : own) {
      squares += static_cast<double>(weight) * static_cast<double>(weight);
      if (std::fabs(weight) > std::fabs(largest)) largest = weight;
    }
    const double mean = own.empty() ? 0.0 : squares / static_cast<double>(own.size());
    result[static_cast<size_t>(group)].largest = std::copysign(static_cast<float>(std::sqrt(mean)), largest);
  }
  return result;
}

std::vector<Extremes> search_ranges(const std::vector<Extremes>& extremes, const GroupedWeights& weights,
                                    const Scheme& scheme, const Codebook& codebook) {
  constexpr int64_t few_groups = 64;  // up to this number, threads share the factors, not the groups
  const std::vector<float> factors = factors_of(scheme);
  std::vector<Extremes> result = extremes;
#pragma omp parallel for schedule(dynamic) if (weights.groups() >= few_groups)
  for (int64_t group = 0; group < weights.groups(); ++group) {
    const Extremes& whole = extremes[static_cast<size_t>(group)];
    std::vector<double> errors(factors.size());
    double least = std::numeric_limits<double>::infinity();
#pragma omp parallel for schedule(dynamic) if (weights.groups() < few_groups)
    for (size_t i = 0; i < factors.size(); ++i) {
      const double limit = weights.groups() < few_groups ? std::numeric_limits<double>::infinity() : least;
      const Step step = scale_of(scaled(whole, factors[i]), scheme, codebook.scale_to).step;
      errors[i] = error_of(weights.weights(group), weights.importance(group), step, codebook, scheme.zero_point, limit);
      if (weights.groups() >= few_groups) least = std::min(least, errors[i]);
    }
    size_t best = 0;
    for (size_t i = 1; i < factors.size(); ++i)
      if (errors[i] < errors[best] || std::isnan(errors[best])) best = i;  // NaN: a scale beyond its type's range
    result[static_cast<size_t>(group)] = scaled(whole, factors[best]);
  }
  return result;
}

std::vector<Extremes> step_ranges(const std::vector<Extremes>& extremes, const GroupedWeights& weights,
                                  float deviations, std::span<const float> fisher) {
  std::vector<Extremes> result = nibblenet::deviations(weights);
  for (size_t group = 0; group < result.size(); ++group) {
    const float finer = fisher.empty() ? 1.0F : std::sqrt(fisher[group]);
    const float reach = deviations * result[group].largest / finer;
    result[group] = extremes[group];
    if (std::fabs(reach) > std::fabs(extremes[group].largest)) result[group].largest = reach;
  }
  return result;
}

std::vector<float> trained_values(const GroupedWeights& weights, const std::vector<Step>& steps, int bits,
                                  int largest_multiple) {
  constexpr uint64_t most_samples = 4'000'000;
  constexpr int most_bits_in_bytes = 4;              // more values lie closer than bytes do
  constexpr uint64_t seed = 0x6B6D6561'6E730000ULL;  // "kmeans"
  float largest_step = 0;
  uint64_t count = 0;
  for (size_t group = 0; group < steps.size(); ++group) {
    largest_step = std::max(largest_step, std::fabs(steps[group].step));
    count += weights.weights(static_cast<int64_t>(group)).size();
  }
  const uint64_t neighbourhood = (count + most_samples - 1) / most_samples;

  std::vector<Sample> samples;
  uint64_t index = 0;
  for (size_t group = 0; group < steps.size(); ++group) {
    const std::span<const float> own = weights.weights(static_cast<int64_t>(group));
    const std::span<const float> importance = weights.importance(static_cast<int64_t>(group));
    const float step = steps[group].step;
    const float relative = largest_step > 0 ? step / largest_step : 0.0F;
    for (size_t i = 0; i < own.size(); ++i, ++index) {
      if (step == 0 || index % neighbourhood != random_bits(seed, 0, index / neighbourhood) % neighbourhood) continue;
      samples.push_back({own[i] / step, relative * relative * (importance.empty() ? 1.0F : importance[i])});
    }
  }
  std::vector<float> values = train_codebook(samples, bits);
  if (bits <= most_bits_in_bytes) round_to_bytes(values, samples, largest_multiple);
  keep_finite(values, largest_step);
  return values;
}

}  // namespace nibblenet
