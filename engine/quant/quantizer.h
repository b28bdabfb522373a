#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/quant/gptq.h"
#include "engine/quant/hessian.h"
#include "engine/quant/packed_tensor.h"

namespace nibblenet {

/// The extremes of a group, from which its scale is made. The range includes 0, so that 0 has an
/// exact affine code.
struct Extremes {
  float lowest = 0;
  float highest = 0;
  float largest = 0;  ///< signed element of largest magnitude; the first one of several
};

/// The divisor of a group's weights and, for affine schemes, the code of 0.
struct Step {
  float step = 0;
  float zero_point = 0;
};

/// How a group's scale is found.
///   max     from its extremes
///   search  by a search for the least error
///   step    fixed step size: `deviations` x RMS of the group, over the square root of the Fisher
///           diagonal if there is one. Use it with entropy coding, where unused codes are free.
///           `linear` without a zero point only. The step grows until the largest weight fits:
///           nothing clips.
enum class Range : uint8_t { max, search, step };

/// How a weight's code is chosen: nearest value, or GPTQ (error feedback).
enum class Rounding : uint8_t { nearest, gptq };

/// Options of quantize().
struct QuantizeOptions {
  Range range = Range::max;
  float deviations = 0;  ///< of Range::step: root mean squares from one value to the next
  Rounding rounding = Rounding::nearest;
  ColumnOrder order = ColumnOrder::natural;  ///< of GPTQ
  int passes = 0;                            ///< of GPTQ, see gptq()
  double rate_weight = 0;                    ///< of GPTQ: cost of a bit, see gptq()
  /// Hessian of the layer's inputs, which are not rotated. GPTQ needs it; k-means and the search
  /// weight errors by its diagonal.
  const Hessian* hessian = nullptr;
  /// Fisher diagonal of the layer's outputs (relative_fisher()), [K] or empty. Ranges by step and
  /// rate weights use it, so that outputs that matter to the predictions get the bits.
  std::span<const float> fisher;
  /// factorize(*hessian, order), made once for many schemes; null: made on demand. For rotated
  /// schemes it is that of rotated(*hessian, rotation_of_weights()).
  const HessianFactor* factor = nullptr;
  OnColumns on_columns;          ///< progress of GPTQ
  GptqReport* report = nullptr;  ///< filled with GPTQ's result
};

/// Throws UsageError naming the tensor for a rate weight or passes without GPTQ and for steps that
/// are not finite and above 0 or that the scheme does not have.
void validate(const QuantizeOptions& options, const Scheme& scheme, std::string_view name);

/// quantize() of packed_tensor.h by options. Validated. Throws UsageError for GPTQ without a
/// Hessian, ShapeError for the Hessian of another number of inputs.
PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizeOptions& options);

/// The largest ratio, over all groups, of a group's largest weight to its root mean square: the
/// range of steps has to reach it. 0 if all weights are 0.
float largest_deviation(TensorView<const float> weights, const Granularity& granularity);

/// The two passes of quantize() over all weights, for a device that runs them faster. `blocks`
/// holds the group of each weight of magnitude-sorted schemes; else it is empty and `map` gives the
/// group.
struct QuantizerPasses {
  std::function<std::vector<Extremes>(TensorView<const float> weights, const GroupMap& map,
                                      std::span<const uint32_t> blocks)>
      extremes;
  /// Fills packed.codes. Requires: zeros of the right size.
  std::function<void(PackedTensor& packed, TensorView<const float> weights, const GroupMap& map,
                     std::span<const uint32_t> blocks, std::span<const Step> steps, const Codebook& codebook)>
      encode;
};

/// Fills the codes of `packed` with the nearest values to `weights`, by its scales, zero points and
/// codebook. Unsorted schemes only.
void encode_nearest(PackedTensor& packed, TensorView<const float> weights);

/// Throws Error that names the tensor and the first weight that is NaN or infinite.
void expect_finite(TensorView<const float> weights, std::string_view name);

/// Quantizes rotated weights: `quantize` gets them with their inputs rotated, and the scheme
/// without that. Throws as quantize().
PackedTensor quantize_rotated(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                              const std::function<PackedTensor(TensorView<const float>, const Scheme&)>& quantize);

/// quantize() with other implementations of its passes. The bits are the same if the passes are
/// right. They get weights whose inputs are rotated already.
PackedTensor quantize(TensorView<const float> weights, const Scheme& scheme, std::string_view name,
                      const QuantizerPasses& passes, const QuantizeOptions& options = {});

}  // namespace nibblenet
