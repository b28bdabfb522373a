#pragma once

#include <optional>
#include <span>
#include <utility>

#include "kernels/forward_route.h"
#include "layers/network/network_spec.h"

// Fusion: which layers of an inference pass become one operation of the backend. `spec_at(i)`: the
// i-th layer's LayerSpec; `outputs`: shapes of the layers' outputs.

namespace nibblenet {

/// Whether a layer is an average pool of single pixels.
inline bool averages_nothing(const LayerSpec& spec, const Shape& x, const Shape& y) {
  return spec.kind == LayerKind::adaptive_average_pool2d && x[1] == y[1] && x[2] == y[2];
}

/// Whether a layer does nothing in inference: dropout, or an average pool of single pixels.
inline bool does_nothing(const LayerSpec& spec, const Shape& x, const Shape& y) {
  return spec.kind == LayerKind::dropout || averages_nothing(spec, x, y);
}

/// Whether layer `index` is a convolution and max pooling follows, but not as the last layer, whose
/// output is float32.
template <class SpecAt>
bool pools_behind(size_t index, size_t layers, SpecAt spec_at) {
  return index + 2 < layers && spec_at(index).kind == LayerKind::conv2d &&
         spec_at(index + 1).kind == LayerKind::max_pool2d;
}

/// The index of the flatten behind layer `index`, if no layer between them computes and it is not
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

/// The layers that one operation computes: a layer with weights, and those behind it up to `last`.
struct FusedLayers {
  size_t last;
  std::optional<ForwardRoute> route;
};
/// The operation of layer `index`, whose input has shape `x`. It fuses as much as
/// route_of(question) has a kernel for (Inference::route): max pooling and flatten, max pooling, or
/// nothing.
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
