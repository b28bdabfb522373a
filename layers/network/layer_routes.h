#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "layers/network/network.h"

namespace nibblenet {

/// The route of a layer: which kernel computes it in a forward pass.
struct LayerRoute {
  std::string layer;
  ForwardRoute route;
};
/// "few_pixels after weight_superblocks, with max pooling and flatten"
std::string to_string(const ForwardRoute& route);

/// Gives the route of a layer, like Inference::route() for its weight.
using RouteOf = std::function<std::optional<ForwardRoute>(const LayerSpec& layer, const ForwardQuestion& question)>;

/// The routes of the layers with weights, in an inference pass over `input` [N, S, S, 3].
std::vector<LayerRoute> layer_routes(const std::vector<LayerSpec>& layers, const Shape& input, Precision precision,
                                     const RouteOf& route_of);
/// The routes of a network on its backend.
std::vector<LayerRoute> layer_routes(const Network& network, const Shape& input);

}  // namespace nibblenet
