#pragma once

#include <cstdint>
#include <functional>

#include "engine/quant/hessian_factor.h"
#include "engine/quant/packed_tensor.h"
#include "engine/quant/rate_cost.h"

namespace nibblenet {

/// Called as rounding goes on with the inputs done of all, over all passes; may throw to stop.
using OnColumns = std::function<void(int64_t done, int64_t total)>;

struct GptqOptions {
  RateCost rate;
  int passes = 0;  ///< coordinate-descent passes: each chooses every code again
  OnColumns on_columns;
};

/// What GPTQ did to a tensor.
struct GptqReport {
  double nearest_error = 0;  ///< tr((W - V) H (W - V)^T) with every weight rounded to nearest
  double error = 0;          ///< the same with the codes chosen
  double bits = 0;           ///< a weight, as the entropy coder's classes will see the codes chosen
  double damping = 0;        ///< what was added to H's diagonal, relative to its mean
  int64_t rows_kept = 0;     ///< output channels whose nearest codes were at least as good, and stayed
  int64_t dead_inputs = 0;   ///< inputs that were 0 throughout: their weights stay rounded to nearest
};

/// Chooses the codes of `packed` again so that errors of rounding cancel in the layer's output: column by column, what
/// rounding does to one input's weights is made up for by the weights not yet rounded (GPTQ, Frantar 2023, arXiv
/// 2210.17323, in blocks of 128 columns). Scales, zero points, block ids and the codebook stay. An output channel
/// whose error by this Hessian would not fall keeps its codes.
///
/// A pass of coordinate descent then chooses every code once more, given all others (QuantEase, Behdin 2023, arXiv
/// 2309.01885), which no output channel's error grows by.
///
/// With a rate weight L the error is weighed against the file: a weight's code is the one with the least g e^2 + L unit
/// bits(code). e^2 is what the code adds to the output error, g the output's entry of the Fisher diagonal; bits are
/// those of the code's frequency in its class of channels or inputs, counted on the codes of the pass before; unit is
/// the mean g e^2 that rounding to nearest can be expected to leave a weight, so that L means the same for every layer
/// and step: on a fine grid, where a bit more a weight makes e^2 a quarter, the best trade is at 2 ln 2 = 1.39.
/// Channels are then kept by the same sum.
///
/// `packed` holds `weights` rounded to nearest. Takes 5 K D bytes beside the factor while it works. Throws ShapeError
/// when sizes disagree.
GptqReport gptq(PackedTensor& packed, TensorView<const float> weights, const HessianFactor& factor,
                const GptqOptions& options = {});

/// The same from the Hessian itself. Throws Error when no damping makes it positive definite.
GptqReport gptq(PackedTensor& packed, TensorView<const float> weights, const Hessian& hessian,
                ColumnOrder order = ColumnOrder::natural, const GptqOptions& options = {});

}  // namespace nibblenet
