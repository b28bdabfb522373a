#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// What the scale of a group is made from. The range includes 0, so that 0 has an exact affine code.
struct Extremes {
  float lowest = 0;
  float highest = 0;
  float largest = 0;  ///< signed element of largest magnitude; the first one of several
};

/// What a weight is divided by and, for affine schemes, the code of 0.
struct Step {
  float step = 0;
  float zero_point = 0;
};

/// The two passes of quantize() that touch every weight, for a device that runs them faster. `blocks` holds the group
/// of each weight of magnitude-sorted schemes and is empty for the others, where `map` knows it.
struct QuantizerPasses {
  std::function<std::vector<Extremes>(TensorView<const float> weights, const GroupMap& map,
                                      std::span<const uint32_t> blocks)>
      extremes;
  /// Fills packed.codes, which are zeros of the right size.
  std::function<void(PackedTensor& packed, TensorView<const float> weights, const GroupMap& map,
                     std::span<const uint32_t> blocks, std::span<const Step> steps, const Codebook& codebook)>
      encode;
};

/// Throws Error that names the tensor and the first weight that is NaN or infinite.
void expect_finite(TensorView<const float> weights, std::string_view name);

/// quantize() with other passes: the same bits, if they do what they should.
PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizerPasses& passes);

}  // namespace nibblenet
