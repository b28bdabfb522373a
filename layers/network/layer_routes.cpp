#include "layers/network/layer_routes.h"

#include <algorithm>

#include "layers/network/fusion.h"

namespace nibblenet {

std::string to_string(const ForwardRoute& route) {
  std::string first = route.rotates ? "hadamard" : "";
  if (!route.expansion.empty()) first += (first.empty() ? "" : " and ") + route.expansion;
  return fmt::format("{}{}{}{}", route.kernel, first.empty() ? "" : " after " + first,
                     route.pools ? ", with max pooling" : "", route.flattens ? " and flatten" : "");
}

std::vector<LayerRoute> layer_routes(const std::vector<LayerSpec>& layers, const Shape& input, Precision precision,
                                     const RouteOf& route_of) {
  std::vector<Shape> outputs;
  for (const LayerSpec& layer : layers) outputs.push_back(layer.output_shape(outputs.empty() ? input : outputs.back()));
  const auto spec_at = [&](size_t i) -> const LayerSpec& { return layers[i]; };
  std::vector<LayerRoute> routes;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!layers[i].has_parameters()) continue;
    const FusedLayers fused =
        fused_layers(i, i == 0 ? input : outputs[i - 1], precision, outputs, spec_at,
                     [&](const ForwardQuestion& question) { return route_of(layers[i], question); });
    routes.push_back({layers[i].name, fused.route.value_or(ForwardRoute{})});
  }
  return routes;
}

std::vector<LayerRoute> layer_routes(const Network& network, const Shape& input) {
  std::vector<LayerSpec> specs;
  for (const Layer& layer : network.layers()) specs.push_back(layer.spec);
  return layer_routes(specs, input, network.storage(),
                      [&](const LayerSpec& spec, const ForwardQuestion& question) -> std::optional<ForwardRoute> {
                        const auto layer = std::ranges::find(network.layers(), spec.name, [](const Layer& each) {
                          return std::string_view(each.spec.name);
                        });
                        if (layer->folded != nullptr) return ForwardRoute{"folded"};
                        std::optional<ForwardRoute> route = network.backend().route(*layer->weight, question);
                        if (route) route->rotates = bool(layer->weight->rotation());
                        return route;
                      });
}

}  // namespace nibblenet
