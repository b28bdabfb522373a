#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "engine/quant/group_weights.h"
#include "engine/quant/quantizer.h"

namespace nibblenet {

/// A group's stored scale, rounded to its type, and the step that its weights are divided by.
struct GroupScale {
  float scale = 0;
  Step step;
};
/// The scale and step of a group with these extremes.
GroupScale scale_of(const Extremes& group, const Scheme& scheme, float scale_to);

/// The code of a weight. A group of zeros, or one whose step underflows, gets exact zeros: its step
/// is 0.
inline uint32_t code_of(float weight, const Step& group, const Codebook& codebook, bool affine) {
  if (group.step == 0) return codebook.zero_code;
  const float x = weight / group.step;
  if (!affine) return encode(codebook, x);
  return static_cast<uint32_t>(std::clamp(std::nearbyint(x) + group.zero_point, 0.0F, codebook.scale_to));
}

/// Fills the scales and zero points of `packed`. Returns the steps for choosing its codes. Throws
/// Error naming the tensor for a scale that its type rounds to infinity, or to 0 although it is
/// more than a thousandth of the largest.
std::vector<Step> store_scales(PackedTensor& packed, const std::vector<Extremes>& extremes, float scale_to,
                               std::string_view name);

/// The extremes for scales of trained schemes: the root mean square, with the sign of the largest
/// element, in its place.
std::vector<Extremes> deviations(const GroupedWeights& weights);

/// Scales `extremes`, group by group, by the factor of a fixed grid with the least sum of
/// importance (weight - value)^2. The grid contains 1, which wins ties. Grids: 33 factors from 1
/// down to 0.2 for a maximum, which only shrinks; 33 from 0.6 to 1.4 for a root mean square.
std::vector<Extremes> search_ranges(const std::vector<Extremes>& extremes, const GroupedWeights& weights,
                                    const Scheme& scheme, const Codebook& codebook);

/// `extremes` with `deviations` root mean squares of the group in place of the largest element,
/// unless that is larger. They are divided by the root of the outputs' Fisher diagonal: one number
/// a group, or none.
std::vector<Extremes> step_ranges(const std::vector<Extremes>& extremes, const GroupedWeights& weights,
                                  float deviations, std::span<const float> fisher);

/// The codebook of a trained scheme: k-means of the weights divided by their steps. Each error is
/// weighted by its size after multiplying back. Above 4 million weights, one weight of each
/// neighbourhood is sampled, drawn by the neighbourhood's number. Up to 4 bits, values are
/// whole multiples of a unit, at most `largest_multiple` of them, so that they fit bytes
/// (ByteValues).
std::vector<float> trained_values(const GroupedWeights& weights, const std::vector<Step>& steps, int bits,
                                  int largest_multiple);

}  // namespace nibblenet
