// From weights to codes in three passes: the extremes of every group; the scale (and zero point) of
// every group; the code of every weight. Trained codebooks and range search come between them, GPTQ
// comes last. The passes run in parallel over output channels, or over bands of channels where
// groups span several. Iterations share nothing, so the result does not depend on the number of
// threads.

#include "engine/quant/quantizer.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>

#include "engine/quant/bits.h"
#include "engine/quant/byte_values.h"
#include "engine/quant/group_scales.h"
#include "engine/quant/hadamard.h"
#include "engine/quant/magnitude_order.h"
#include "engine/quant/trellis_quantizer.h"

namespace nibblenet {
namespace {

void add(Extremes& group, float weight) {
  group.lowest = std::min(group.lowest, weight);
  group.highest = std::max(group.highest, weight);
  if (std::fabs(weight) > std::fabs(group.largest)) group.largest = weight;
}

std::vector<Extremes> extremes_by_index(const float* weights, int64_t channels, const GroupMap& map) {
  std::vector<Extremes> extremes(static_cast<size_t>(map.groups));
  const int64_t band = std::min(map.channels_in_common(), channels);
#pragma omp parallel for
  for (int64_t first = 0; first < channels; first += band) {
    for (int64_t channel = first; channel < std::min(first + band, channels); ++channel) {
      const float* row = weights + channel * map.channel_elements;
      for (int64_t k = 0; k < map.channel_elements;) {
        Extremes& group = extremes[static_cast<size_t>(map.group(channel, k))];
        for (const int64_t end = k + map.run(k); k < end; ++k) add(group, row[k]);
      }
    }
  }
  return extremes;
}

std::vector<Extremes> extremes_by_block(TensorView<const float> weights, std::span<const uint32_t> blocks,
                                        int64_t groups) {
  std::vector<Extremes> extremes(static_cast<size_t>(groups));
  for (int64_t i = 0; i < weights.elements(); ++i) add(extremes[blocks[static_cast<size_t>(i)]], weights[i]);
  return extremes;
}

/// Encodes one output channel. `blocks` holds the group of each weight; if it is empty, `map` gives
/// the group.
void encode_channel(PackedTensor& packed, const float* weights, int64_t channel, const GroupMap& map,
                    std::span<const Step> steps, const Codebook& codebook, std::span<const uint32_t> blocks) {
  FieldWriter codes(packed.codes.data() + channel * packed.code_stride());
  const int bits = packed.scheme.bits;
  const bool affine = packed.scheme.zero_point;
  for (int64_t k = 0; k < map.channel_elements;) {
    const int64_t group = blocks.empty() ? map.group(channel, k) : blocks[static_cast<size_t>(k)];
    const Step step = steps[static_cast<size_t>(group)];
    for (const int64_t end = k + map.run(k); k < end; ++k) codes.put(code_of(weights[k], step, codebook, affine), bits);
  }
  codes.finish();
}

void pack_block_ids(PackedTensor& packed, int64_t channel, std::span<const uint32_t> blocks) {
  FieldWriter ids(packed.block_ids.data() + channel * packed.block_id_stride());
  const int bits = packed.block_id_bits();
  for (const uint32_t block : blocks) ids.put(block, bits);
  ids.finish();
}

std::span<const uint32_t> of_channel(std::span<const uint32_t> blocks, int64_t channel, int64_t count) {
  if (blocks.empty()) return {};
  return blocks.subspan(static_cast<size_t>(channel * count), static_cast<size_t>(count));
}

std::vector<Extremes> find_extremes(TensorView<const float> weights, const GroupMap& map,
                                    std::span<const uint32_t> blocks) {
  return blocks.empty() ? extremes_by_index(weights.data(), weights.size(0), map)
                        : extremes_by_block(weights, blocks, map.groups);
}

void encode_all(PackedTensor& packed, TensorView<const float> weights, const GroupMap& map,
                std::span<const uint32_t> blocks, std::span<const Step> steps, const Codebook& codebook) {
  const int64_t count = map.channel_elements;
#pragma omp parallel for
  for (int64_t channel = 0; channel < packed.shape[0]; ++channel)
    encode_channel(packed, weights.data() + channel * count, channel, map, steps, codebook,
                   of_channel(blocks, channel, count));
}

}  // namespace

void encode_nearest(PackedTensor& packed, TensorView<const float> weights) {
  expect_shape(weights.shape(), packed.shape, "weights to encode");
  const Codebook codebook = codebook_of(packed);
  std::vector<Step> steps(static_cast<size_t>(packed.groups()));
  for (size_t group = 0; group < steps.size(); ++group) {
    steps[group].step = packed.scale(static_cast<int64_t>(group)) / codebook.scale_to;
    if (packed.scheme.zero_point) steps[group].zero_point = static_cast<float>(packed.zero_points[group]);
  }
  packed.codes.assign(static_cast<size_t>(packed.shape[0] * packed.code_stride()), 0);
  encode_all(packed, weights, make_group_map(packed.scheme.granularity, packed.shape), {}, steps, codebook);
}

void expect_finite(TensorView<const float> weights, std::string_view name) {
  int64_t first = weights.elements();
#pragma omp parallel for reduction(min : first)
  for (int64_t i = 0; i < weights.elements(); ++i)
    if (!std::isfinite(weights[i])) first = std::min(first, i);
  if (first < weights.elements())
    fail<Error>("{}: weight {} is {}; only finite weights can be quantized", name, first, weights[first]);
}

void validate(const QuantizeOptions& options, const Scheme& scheme, std::string_view name) {
  if (options.rate_weight > 0 && options.rounding != Rounding::gptq)
    fail<UsageError>("{}: a rate weight belongs to GPTQ", name);
  if (options.passes > 0 && options.rounding != Rounding::gptq)
    fail<UsageError>("{}: coordinate-descent passes belong to GPTQ", name);
  if (options.rate_weight > 0 && scheme.is_trellis())
    fail<UsageError>("{}: the strings of {} all take the same bits: there is no rate to weigh", name,
                     to_string(scheme));
  if (options.range != Range::step) return;
  if (scheme.method != Method::linear || scheme.zero_point)
    fail<UsageError>("{}: {} has no ranges by step; supported: linear without zero-point", name, to_string(scheme));
  if (!std::isfinite(options.deviations) || options.deviations <= 0)
    fail<UsageError>("{}: a step of {} deviations, expected a finite number above 0", name, options.deviations);
}

namespace {

/// Mean, over each group's weights, of a number given per output channel.
std::vector<float> by_group(std::span<const float> of_channel, const GroupMap& map, int64_t channels) {
  if (of_channel.empty()) return {};
  std::vector<double> sums(static_cast<size_t>(map.groups)), weights(sums.size());
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t k = 0, run = 0; k < map.channel_elements; k += run) {
      run = map.run(k);
      const auto group = static_cast<size_t>(map.group(channel, k));
      sums[group] += static_cast<double>(run) * static_cast<double>(of_channel[static_cast<size_t>(channel)]);
      weights[group] += static_cast<double>(run);
    }
  std::vector<float> means;
  for (size_t group = 0; group < sums.size(); ++group)
    means.push_back(static_cast<float>(sums[group] / weights[group]));
  return means;
}

/// Chooses scales and, for trained schemes, the codebook.
std::vector<Step> prepare(PackedTensor& packed, TensorView<const float> weights, const GroupMap& map,
                          std::span<const uint32_t> blocks, std::string_view name, const QuantizerPasses& passes,
                          const QuantizeOptions& options) {
  const Scheme& scheme = packed.scheme;
  const bool is_trained = traits_of(scheme.method).trained;
  const bool searches = options.range == Range::search;
  if (!is_trained && options.range == Range::max)
    return store_scales(packed, passes.extremes(weights, map, blocks), codebook_of(packed).scale_to, name);

  const std::vector<float> importance = options.hessian == nullptr ? std::vector<float>{} : options.hessian->diagonal();
  const GroupedWeights grouped(weights, map, blocks, importance);
  std::vector<Extremes> extremes = is_trained ? deviations(grouped) : passes.extremes(weights, map, blocks);
  if (is_trained) {
    const std::vector<Step> steps = store_scales(packed, extremes, 1.0F, name);
    packed.codebook =
        trained_values(grouped, steps, scheme.bits, may_sum_columns(packed.shape) ? largest_summand : largest_byte);
  }
  if (searches) extremes = search_ranges(extremes, grouped, scheme, codebook_of(packed));
  if (options.range == Range::step)
    extremes = step_ranges(extremes, grouped, options.deviations * codebook_of(packed).scale_to,
                           by_group(options.fisher, map, packed.shape[0]));
  return store_scales(packed, extremes, codebook_of(packed).scale_to, name);
}

void expect_hessian(const QuantizeOptions& options, const Shape& shape, std::string_view name) {
  if (!options.fisher.empty() && static_cast<int64_t>(options.fisher.size()) != shape[0])
    fail<ShapeError>("{}: Fisher diagonal of {} numbers for {} outputs", name, options.fisher.size(), shape[0]);
  if (options.hessian == nullptr) {
    if (options.rounding == Rounding::gptq) fail<UsageError>("{}: GPTQ needs the Hessian of the layer's inputs", name);
  } else if (options.hessian->inputs != shape.inner_elements()) {
    fail<ShapeError>("{}: Hessian of {} inputs, expected {}", name, options.hessian->inputs, shape.inner_elements());
  }
}

}  // namespace

PackedTensor quantize_rotated(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                              const std::function<PackedTensor(TensorView<const float>, const Scheme&)>& quantize) {
  validate(scheme);
  expect_rotatable(scheme, weights.shape(), name);
  expect_finite(weights, name);
  Tensor<float> turned(host_memory(), weights.shape(), MemoryCategory::data);
  std::ranges::copy(weights.span(), turned.data());
  hadamard_transform(turned.view().span(), rotation_of_weights(scheme, weights.shape()));
  Scheme plain = scheme;
  plain.rotated = 0;
  PackedTensor packed = quantize(std::as_const(turned).view(), plain);
  packed.scheme = scheme;
  return packed;
}

PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizerPasses& passes, const QuantizeOptions& options) {
  validate(scheme);
  const GroupMap map = make_group_map(scheme.granularity, weights.shape());
  validate(options, scheme, name);
  expect_hessian(options, weights.shape(), name);
  expect_finite(weights, name);
  if (scheme.is_rotated())
    return quantize_rotated(weights, scheme, name, [&](TensorView<const float> turned, const Scheme& plain) {
      QuantizeOptions turned_options = options;
      Hessian hessian;
      if (options.hessian != nullptr) {
        hessian = rotated(*options.hessian, rotation_of_weights(scheme, weights.shape()));
        turned_options.hessian = &hessian;
      }
      return quantize(turned, plain, name, passes, turned_options);
    });
  if (scheme.is_trellis()) return quantize_trellis(weights, scheme, name, options);

  PackedTensor packed;
  packed.scheme = scheme;
  packed.shape = weights.shape();
  const int64_t channels = packed.shape[0];
  const bool is_sorted = traits_of(scheme.method).sorted;
  const std::vector<uint32_t> blocks =
      is_sorted ? magnitude_blocks(weights.span(), map.block) : std::vector<uint32_t>();
  const std::vector<Step> steps = prepare(packed, weights, map, blocks, name, passes, options);

  packed.codes.resize(static_cast<size_t>(channels * packed.code_stride()));
  passes.encode(packed, weights, map, blocks, steps, codebook_of(packed));
  if (is_sorted) {
    packed.block_ids.resize(static_cast<size_t>(channels * packed.block_id_stride()));
#pragma omp parallel for
    for (int64_t channel = 0; channel < channels; ++channel)
      pack_block_ids(packed, channel, of_channel(blocks, channel, map.channel_elements));
  }
  if (options.rounding == Rounding::gptq) {
    std::optional<HessianFactor> own;
    if (options.factor == nullptr) own = factorize(*options.hessian, options.order);
    const GptqReport done = gptq(packed, weights, own ? *own : *options.factor,
                                 {.rate = {.weight = options.rate_weight, .fisher = options.fisher},
                                  .passes = options.passes,
                                  .on_columns = options.on_columns});
    if (options.report != nullptr) *options.report = done;
  }
  return packed;
}

PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizeOptions& options) {
  return quantize(weights, scheme, name, {find_extremes, encode_all}, options);
}

float largest_deviation(TensorView<const float> weights, const Granularity& granularity) {
  const GroupMap map = make_group_map(granularity, weights.shape());
  const GroupedWeights grouped(weights, map, {}, {});
  const std::vector<Extremes> extremes = find_extremes(weights, map, {}), squares = deviations(grouped);
  float largest = 0;
  for (size_t group = 0; group < extremes.size(); ++group)
    if (squares[group].largest != 0) largest = std::max(largest, extremes[group].largest / squares[group].largest);
  return largest;
}

PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name) {
  return quantize(weights, scheme, name, QuantizeOptions{});
}

}  // namespace nibblenet
