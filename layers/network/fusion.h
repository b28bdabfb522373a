#pragma once

#include <optional>
#include <span>

#include "layers/network/network_spec.h"

// Which layers of an inference pass may be one operation of the backend. `spec_at(i)`: the i-th
// layer's LayerSpec; `outputs`: shapes of the layers' outputs.

namespace nibblenet {

/// Whether it is an average pool of single pixels.
inline bool averages_nothing(const LayerSpec& spec, const Shape& x, const Shape& y) {
  return spec.kind == LayerKind::adaptive_average_pool2d && x[1] == y[1] && x[2] == y[2];
}

/// Whether it is dropout, or the average of single pixels.
inline bool does_nothing(const LayerSpec& spec, const Shape& x, const Shape& y) {
  return spec.kind == LayerKind::dropout || averages_nothing(spec, x, y);
}

/// Whether max pooling follows a convolution. The last layer's output is float32, and is not pooled
/// at once.
template <class SpecAt>
bool pools_behind(size_t index, size_t layers, SpecAt spec_at) {
  return index + 2 < layers && spec_at(index).kind == LayerKind::conv2d &&
         spec_at(index + 1).kind == LayerKind::max_pool2d;
}

/// The flatten behind layer `index`, where nothing that computes stands between them, and it is not
/// the last layer.
template <class SpecAt>
std::optional<size_t> flatten_behind(size_t index, std::span<const Shape> outputs, SpecAt spec_at) {
  const Shape& shape = outputs[index];
  while (++index + 1 < outputs.size()) {
    if (spec_at(index).kind == LayerKind::flatten) return index;
    if (!does_nothing(spec_at(index), shape, outputs[index])) break;
  }
  return std::nullopt;
}

}  // namespace nibblenet
