#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/quant/gptq.h"
#include "engine/quant/hessian.h"
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

/// How the scale of a group is found: from its extremes as they are, by a search for less error, or so that values lie
/// a given number of the group's root mean squares apart, which is what an entropy-coded file wants: a code that is not
/// used takes no bits there; with a Fisher diagonal, over its square root. Steps are for `linear` without a
/// zero point; one that would not reach the group's largest weight is as large as that takes, so that nothing is
/// clipped.
enum class Range : uint8_t { max, search, step };

/// How a weight finds its code: the nearest one, or by what rounding did to the weights before it.
enum class Rounding : uint8_t { nearest, gptq };

struct QuantizeOptions {
  Range range = Range::max;
  float deviations = 0;  ///< of Range::step: root mean squares from one value to the next
  Rounding rounding = Rounding::nearest;
  ColumnOrder order = ColumnOrder::natural;  ///< of GPTQ
  int passes = 0;                            ///< of GPTQ, see gptq()
  double rate_weight = 0;                    ///< of GPTQ: what a bit costs, see gptq()
  /// Of the layer's inputs: GPTQ needs them, k-means and the search weigh errors by their diagonal.
  const Hessian* hessian = nullptr;
  /// Of the layer's outputs (relative_fisher()), [K] or empty: ranges by step and rate weights go by it, so that
  /// what the predictions care about gets the bits.
  std::span<const float> fisher;
  /// factorize(*hessian, order), made once for many schemes; null: made when it is needed.
  const HessianFactor* factor = nullptr;
  OnColumns on_columns;          ///< progress of GPTQ
  GptqReport* report = nullptr;  ///< what GPTQ achieved
};

/// Throws UsageError naming the tensor for a rate weight or passes without GPTQ and for steps that
/// are not finite and above 0 or that the scheme does not have.
void validate(const QuantizeOptions& options, const Scheme& scheme, std::string_view name);

/// quantize() of packed_tensor.h by options. Validated. Throws UsageError for GPTQ without a Hessian,
/// ShapeError for the Hessian of another number of inputs.
PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizeOptions& options);

/// Root mean squares from 0 to the largest weight of a group, in the group where it is most: with what the range of
/// steps has to reach. 0 when all weights are.
float largest_deviation(TensorView<const float> weights, const Granularity& granularity);

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

/// Fills the codes of `packed` with the nearest values to `weights` by the scales and the codebook it has already.
/// Unsorted schemes only; zero points are respected.
void encode_nearest(PackedTensor& packed, TensorView<const float> weights);

/// Throws Error that names the tensor and the first weight that is NaN or infinite.
void expect_finite(TensorView<const float> weights, std::string_view name);

/// quantize() with other passes: the same bits, if they do what they should.
PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizerPasses& passes, const QuantizeOptions& options = {});

}  // namespace nibblenet
