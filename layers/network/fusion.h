#pragma once

#include <optional>
#include <span>
#include <utility>

#include "kernels/forward_route.h"
#include "layers/network/network_spec.h"

// Which layers of an inference pass are one operation of the backend. `spec_at(i)`: the i-th
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

/// What one operation computes: a layer with weights, and the layers behind it up to `last`.
struct FusedLayers {
  size_t last;
  std::optional<ForwardRoute> route;
};
/// Of layer `index`, whose input has x's shape. As much is fused as `route_of(question)` has a
/// kernel for (Inference::route): max pooling with flatten, max pooling, or nothing.
template <class SpecAt, class RouteOf>
FusedLayers fused_layers(size_t index, const Shape& x, Precision precision, std::span<const Shape> outputs,
                         SpecAt spec_at, RouteOf route_of) {
  ForwardQuestion question{.x = x,
                           .precision = precision,
                           .y = index + 1 == outputs.size() ? Precision::float32 : precision,
                           .window = spec_at(index).window};
  if (pools_behind(index, outputs.size(), spec_at)) {
    question.pool = spec_at(index + 1).window;
    const std::optional<size_t> flatten = flatten_behind(index + 1, outputs, spec_at);
    question.flat = flatten.has_value();
    if (auto route = route_of(question)) return {flatten.value_or(index + 1), std::move(route)};
    if (std::exchange(question.flat, false))
      if (auto route = route_of(question)) return {index + 1, std::move(route)};
    question.pool.size = 0;
  }
  return {index, route_of(question)};
}

}  // namespace nibblenet
