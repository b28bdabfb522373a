#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "engine/quant/group_weights.h"
#include "engine/quant/quantizer.h"

namespace nibblenet {

/// What is stored for a group, rounded to its type, and what its weights are divided by.
struct GroupScale {
  float scale = 0;
  Step step;
};
GroupScale scale_of(const Extremes& group, const Scheme& scheme, float scale_to);

/// The code of a weight. A group of zeros, or one whose step underflows, holds exact zeros: there is nothing to divide
/// by.
inline uint32_t code_of(float weight, const Step& group, const Codebook& codebook, bool affine) {
  if (group.step == 0) return codebook.zero_code;
  const float x = weight / group.step;
  if (!affine) return encode(codebook, x);
  return static_cast<uint32_t>(std::clamp(std::nearbyint(x) + group.zero_point, 0.0F, codebook.scale_to));
}

/// Fills the scales and zero points of `packed` and returns the steps that its codes are chosen with. Throws Error
/// naming the tensor for a scale beyond the range of its type.
std::vector<Step> store_scales(PackedTensor& packed, const std::vector<Extremes>& extremes, float scale_to,
                               std::string_view name);

/// What trained schemes make their scales from: the root mean square in the place of the largest element, whose sign it
/// takes.
std::vector<Extremes> deviations(const GroupedWeights& weights);

/// `extremes` scaled, group by group, by the factor of a fixed grid whose scale gives the least sum of importance
/// (weight - value)^2; 1 is in the grid and wins ties. Grids: 33 factors from 1 down to 0.2 where the scale is a
/// maximum, which only shrinks; 33 from 0.6 to 1.4 where it is a root mean square.
std::vector<Extremes> search_ranges(const std::vector<Extremes>& extremes, const GroupedWeights& weights,
                                    const Scheme& scheme, const Codebook& codebook);

/// `extremes` with `deviations` root mean squares of the group in the place of the largest element, unless that is
/// larger itself; over the root of the Fisher diagonal of its outputs, one number a group or none.
std::vector<Extremes> step_ranges(const std::vector<Extremes>& extremes, const GroupedWeights& weights,
                                  float deviations, std::span<const float> fisher);

/// The codebook of a trained scheme: k-means of the weights divided by their steps, each error counted as what it is
/// after multiplying back; of more than 4 million weights, every n-th neighbourhood gives one, drawn by its number.
std::vector<float> trained_values(const GroupedWeights& weights, const std::vector<Step>& steps, int bits);

}  // namespace nibblenet
