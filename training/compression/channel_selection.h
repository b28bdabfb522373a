#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/quant/hessian.h"

namespace nibblenet {

/// A layer's weights when only some of its input channels remain.
struct KeptChannels {
  std::vector<int64_t> channels;  ///< increasing
  Tensor<float> weights;          ///< [K, inputs of these channels], which make up for the others
  double error = 0;               ///< of the output: mean square, relative to that of the output itself
};

/// Hears how many of the channels to remove are gone; throws to stop.
using OnRemoval = std::function<void(int64_t removed, int64_t of)>;

/// Removes those input channels of weights[K, C inputs] whose loss the others can best make up for:
/// one after the other (64th parts at once) the one of the least output error, the weights of all
/// others being chosen anew to have the least (optimal brain surgeon, Hassibi 1993; of groups:
/// Kurtic 2022, arXiv 2203.07259). `fisher` says how much an output's error counts, [K], or is
/// empty for all alike. Channels that were 0 throughout go first. Throws UsageError unless 1 <=
/// count <= channels, ShapeError when sizes disagree.
KeptChannels keep_channels(TensorView<const float> weights, const Hessian& hessian, std::span<const float> fisher,
                           int64_t channels, int64_t count, const OnRemoval& on_removal = {});

}  // namespace nibblenet
