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

/// Called with the channels removed so far, and how many are to be removed; throws to stop.
using OnRemoval = std::function<void(int64_t removed, int64_t of)>;

/// Removes input channels of weights[K, C inputs] for the least output error. It removes the
/// cheapest channel, or a 64th of them at once, and updates all other weights to minimise the error
/// (optimal brain surgeon, Hassibi 1993; of groups: Kurtic 2022, arXiv 2203.07259). `fisher`, [K],
/// weighs each output's error; empty: all alike. Channels that are always 0 go first. Throws
/// UsageError unless 1 <= count <= channels, ShapeError when sizes disagree.
KeptChannels keep_channels(TensorView<const float> weights, const Hessian& hessian, std::span<const float> fisher,
                           int64_t channels, int64_t count, const OnRemoval& on_removal = {});

}  // namespace nibblenet
