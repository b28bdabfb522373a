#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/quant/compensated.h"
#include "engine/quant/packed_tensor.h"
#include "engine/quant/second_moments.h"

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

/// How the scale of a group is found: from its extremes as they are, or by a search for less error.
enum class Range : uint8_t { max, search };

/// How a weight finds its code: the nearest one, or by what rounding did to the weights before it.
enum class Rounding : uint8_t { nearest, compensated };

struct QuantizeOptions {
  Range range = Range::max;
  Rounding rounding = Rounding::nearest;
  ColumnOrder order = ColumnOrder::natural;  ///< of compensated rounding
  /// Of the layer's inputs: compensated rounding needs them, k-means and the search weigh errors by their diagonal.
  const SecondMoments* moments = nullptr;
  OnColumns on_columns;            ///< progress of compensated rounding
  Compensation* report = nullptr;  ///< what compensated rounding achieved
};

/// quantize() of packed_tensor.h by options. Throws UsageError for compensated rounding without moments, ShapeError for
/// moments of another number of inputs.
PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizeOptions& options);

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
                      const QuantizerPasses& passes, const QuantizeOptions& options = {});

}  // namespace nibblenet
