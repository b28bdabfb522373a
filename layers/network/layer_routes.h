#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "layers/network/network.h"

namespace nibblenet {

/// Which kernel computes a layer of a forward pass.
struct LayerRoute {
  std::string layer;
  ForwardRoute route;
};
/// "few_pixels after weight_superblocks, with max pooling and flatten"
std::string to_string(const ForwardRoute& route);

/// Inference::route of a layer's weight, or what stands for it.
using RouteOf = std::function<std::optional<ForwardRoute>(const LayerSpec& layer, const ForwardQuestion& question)>;

/// Routes of the layers with weights, as an inference pass over `input` [N, S, S, 3] asks for them.
std::vector<LayerRoute> layer_routes(const std::vector<LayerSpec>& layers, const Shape& input, Precision precision,
                                     const RouteOf& route_of);
/// Those of a network on its backend.
std::vector<LayerRoute> layer_routes(const Network& network, const Shape& input);

}  // namespace nibblenet
