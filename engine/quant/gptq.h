#pragma once

#include <cstdint>
#include <functional>

#include "engine/quant/hessian_factor.h"
#include "engine/quant/packed_tensor.h"
#include "engine/quant/rate_cost.h"

namespace nibblenet {

/// Progress of GPTQ: inputs done, and all inputs, over all passes. It may throw to stop.
using OnColumns = std::function<void(int64_t done, int64_t total)>;

/// Options of gptq().
struct GptqOptions {
  RateCost rate;
  int passes = 0;  ///< coordinate-descent passes: each chooses every code again
  OnColumns on_columns;
};

/// What GPTQ did to a tensor.
struct GptqReport {
  double nearest_error = 0;  ///< tr((W - V) H (W - V)^T) with every weight rounded to nearest
  double error = 0;          ///< the same with the codes chosen
  double bits = 0;           ///< a weight, of the chosen codes by the entropy coder's classes
  double damping = 0;        ///< added to H's diagonal, relative to its mean
  int64_t rows_kept = 0;     ///< output channels that keep their nearest codes, which were as good
  int64_t dead_inputs = 0;   ///< inputs that were always 0: their weights stay rounded to nearest
};

/// GPTQ (Frantar 2023, arXiv 2210.17323, in blocks of 128 columns): chooses the codes of `packed`
/// again so that rounding errors cancel in the layer's output. Column by column, the weights not
/// yet rounded compensate for the rounding error of one input's weights. Scales, zero points, block
/// ids and the codebook stay. An output channel keeps its codes if its error by this Hessian would
/// not fall.
///
/// Each coordinate-descent pass then chooses every code once more, given all others (QuantEase,
/// Behdin 2023, arXiv 2309.01885). No output channel's error grows by it.
///
/// A rate weight L trades error against file size: a weight takes the code of least
/// g e^2 + L unit bits(code).
///   e^2   the code's addition to the output error
///   g     the output's entry of the Fisher diagonal
///   bits  by the code's frequency in its class of channels or inputs, counted in the pass before
///   unit  the expected mean g e^2 of rounding to nearest, so that L means the same for all layers
/// On a fine grid one more bit a weight divides e^2 by four, and the best trade is at 2 ln 2 =
/// 1.39. The same sum decides whether a channel keeps its codes.
///
/// `packed` holds `weights` rounded to nearest. Takes 5 K D bytes of memory beside the factor.
/// Throws ShapeError if sizes disagree.
GptqReport gptq(PackedTensor& packed, TensorView<const float> weights, const HessianFactor& factor,
                const GptqOptions& options = {});

}  // namespace nibblenet
