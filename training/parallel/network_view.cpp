#include "training/parallel/network_view.h"

#include <algorithm>

#include "kernels/cpu/weight_cpu.h"

namespace nibblenet {

Network view_of(Network& network, CpuBackend& backend) {
  if (dynamic_cast<CpuBackend*>(&network.backend()) == nullptr)
    throw Error("a view shares weights with a network on the CPU");
  StateDict shapes;  // the values are replaced by views below
  for (const Layer& layer : network.layers()) {
    if (!layer.spec.has_parameters()) continue;
    Parameter weight{.name = layer.spec.name + ".weight",
                     .value = Tensor<float>(host_memory(), layer.spec.weight, MemoryCategory::data)};
    std::ranges::fill(weight.values().view(), 0.0F);
    shapes.parameters.push_back(std::move(weight));
    shapes.parameters.push_back(read_back(network.backend(), layer.spec.name + ".bias", layer.bias.view()));
  }
  Network view = Network::for_training(backend, std::move(shapes), Precision::float32);
  for (size_t i = 0; i < view.layers().size(); ++i) {
    Weight* weight = network.layers()[i].weight.get();
    if (weight == nullptr) continue;
    if (weight->packed())
      view.layers()[i].weight =
          std::make_unique<PackedWeightCpu>(weight->shape(), static_cast<PackedWeightCpu*>(weight)->view());
    else
      view.layers()[i].weight = std::make_unique<FloatWeightCpu>(backend, weight->values(), ViewOfValues{});
  }
  return view;
}

void refresh(Network& view, const Network& network) {
  for (size_t i = 0; i < view.layers().size(); ++i) {
    Layer& layer = view.layers()[i];
    if (!layer.spec.has_parameters()) continue;
    std::ranges::copy(network.layers()[i].bias.view().span(), layer.bias.data());
    layer.weight->changed();
  }
}

}  // namespace nibblenet
