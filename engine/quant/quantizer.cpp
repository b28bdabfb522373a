// From weights to codes in three passes: the extremes of every group, the scale (and zero point) of every group, the
// code of every weight. The passes run over output channels in parallel, or over bands of them where groups span
// several; nothing is shared between iterations, so the result does not depend on the number of threads.

#include "engine/quant/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "engine/quant/bits.h"
#include "engine/quant/magnitude_order.h"

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

/// The scale of a group as it will be read back: rounded to its type.
float stored_scale(const Extremes& group, const Scheme& scheme, float scale_to) {
  float scale = scheme.zero_point ? group.highest - group.lowest : group.largest;
  if (scheme.sign == ScaleSign::absolute) scale = std::fabs(scale);
  if (scheme.scale == ScaleType::f16) return f16_to_f32(f32_to_f16(scale));
  // At the very end of float32's range the outermost value may round up to infinity when it is decoded.
  while (std::isfinite(scale) && !std::isfinite(scale_to * (scale / scale_to))) scale = std::nextafter(scale, 0.0F);
  return scale;
}

/// Fills the scales and zero points of `packed` and returns the steps that its codes are chosen with.
std::vector<Step> choose_scales(PackedTensor& packed, const std::vector<Extremes>& extremes, float scale_to,
                                std::string_view name) {
  const Scheme& scheme = packed.scheme;
  const size_t scale_bytes = scheme.scale == ScaleType::f16 ? 2 : 4;
  packed.scales.resize(extremes.size() * scale_bytes);
  if (scheme.zero_point) packed.zero_points.resize(extremes.size());

  std::vector<Step> steps(extremes.size());
  for (size_t group = 0; group < extremes.size(); ++group) {
    const float scale = stored_scale(extremes[group], scheme, scale_to);
    if (!std::isfinite(scale))
      fail<Error>("{}: the scale of group {} is beyond the range of {}; supported: {}", name, group,
                  to_string(scheme.scale), scheme.scale == ScaleType::f16 ? "f32" : "schemes without zero-point");
    const uint16_t half = f32_to_f16(scale);
    const void* bytes = scheme.scale == ScaleType::f16 ? static_cast<const void*>(&half) : &scale;
    std::memcpy(packed.scales.data() + group * scale_bytes, bytes, scale_bytes);

    steps[group].step = scale / scale_to;
    if (!scheme.zero_point || steps[group].step == 0) continue;
    const float zero_point = std::nearbyint(-extremes[group].lowest / steps[group].step);
    steps[group].zero_point = std::clamp(zero_point, 0.0F, scale_to);
    packed.zero_points[group] = static_cast<uint8_t>(steps[group].zero_point);
  }
  return steps;
}

/// A group of zeros, or one whose step underflows, holds exact zeros: there is nothing to divide by.
uint32_t code_of(float weight, const Step& group, const Codebook& codebook, bool affine) {
  if (group.step == 0) return codebook.zero_code;
  const float x = weight / group.step;
  if (!affine) return encode(codebook, x);
  return static_cast<uint32_t>(std::clamp(std::nearbyint(x) + group.zero_point, 0.0F, codebook.scale_to));
}

/// The codes of one output channel; `blocks` holds the group of each of its weights, or nothing where `map` does.
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

void expect_finite(TensorView<const float> weights, std::string_view name) {
  int64_t first = weights.elements();
#pragma omp parallel for reduction(min : first)
  for (int64_t i = 0; i < weights.elements(); ++i)
    if (!std::isfinite(weights[i])) first = std::min(first, i);
  if (first < weights.elements())
    fail<Error>("{}: weight {} is {}; only finite weights can be quantized", name, first, weights[first]);
}

PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizerPasses& passes) {
  validate(scheme);
  const GroupMap map = make_group_map(scheme.granularity, weights.shape());
  expect_finite(weights, name);

  PackedTensor packed;
  packed.scheme = scheme;
  packed.shape = weights.shape();
  const int64_t channels = packed.shape[0];
  const Codebook codebook = codebook_of(packed);
  const bool is_sorted = traits_of(scheme.method).sorted;
  const std::vector<uint32_t> blocks =
      is_sorted ? magnitude_blocks(weights.span(), map.block) : std::vector<uint32_t>();
  const std::vector<Step> steps = choose_scales(packed, passes.extremes(weights, map, blocks), codebook.scale_to, name);

  packed.codes.resize(static_cast<size_t>(channels * packed.code_stride()));
  passes.encode(packed, weights, map, blocks, steps, codebook);
  if (is_sorted) {
    packed.block_ids.resize(static_cast<size_t>(channels * packed.block_id_stride()));
#pragma omp parallel for
    for (int64_t channel = 0; channel < channels; ++channel)
      pack_block_ids(packed, channel, of_channel(blocks, channel, map.channel_elements));
  }
  return packed;
}

PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name) {
  return quantize(weights, scheme, name, {find_extremes, encode_all});
}

}  // namespace nibblenet
