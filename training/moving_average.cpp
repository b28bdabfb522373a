#include "training/moving_average.h"

#include <algorithm>

#include "kernels/training.h"

namespace nibblenet {
namespace {

Tensor<float> copy_in_optimizer_memory(Backend& backend, TensorView<const float> parameter) {
  Tensor<float> copy(backend, parameter.shape(), MemoryCategory::optimizer);
  const std::vector<float> values = backend.to_host(parameter);
  backend.copy_from_host(copy.data(), values.data(), values.size() * sizeof(float));
  return copy;
}

void restore_average(Backend& backend, Tensor<float>& average, const StateDict& averages, const std::string& name) {
  const Tensor<float>& source = averages.at(name).values();
  expect_shape(source.shape(), average.shape(), "average of " + name);
  backend.copy_from_host(average.data(), source.data(), source.view().span().size_bytes());
}

}  // namespace

MovingAverage::MovingAverage(Network& network, size_t first, double decay, bool keep_zeros)
    : network_(network), decay_(decay), keep_zeros_(keep_zeros) {
  Backend& backend = network.backend();
  for (size_t i = first; i < network.layers().size(); ++i) {
    const Layer& layer = network.layers()[i];
    if (!layer.spec.has_parameters()) continue;
    averages_.push_back({.layer = i,
                         .weight = copy_in_optimizer_memory(backend, layer.weight->values()),
                         .bias = copy_in_optimizer_memory(backend, layer.bias.view())});
  }
}

double MovingAverage::share(double decay, int64_t number) {
  const auto n = static_cast<double>(number);
  return 1 - std::min(decay, (1 + n) / (10 + n));
}

void MovingAverage::update(int64_t number) {
  Training& backend = network_.backend().training();
  const auto part = static_cast<float>(share(decay_, number));
  for (Averaged& average : averages_) {
    const Layer& layer = network_.layers()[average.layer];
    backend.move_average(average.weight.view(), layer.weight->values(), part);
    backend.move_average(average.bias.view(), layer.bias.view(), part);
  }
}

StateDict MovingAverage::applied_to(StateDict parameters) const {
  for (Parameter& average : save().parameters) {
    Parameter& parameter = parameters.at(average.name);
    if (keep_zeros_ && average.name.ends_with(".weight")) {
      const Tensor<float>& current = parameter.values();
      for (int64_t i = 0; i < current.elements(); ++i)
        if (current.data()[i] == 0.0F) average.values().data()[i] = 0.0F;
    }
    parameter.value = std::move(average.value);
  }
  return parameters;
}

StateDict MovingAverage::save() const {
  StateDict averages;
  for (const Averaged& average : averages_) {
    const std::string& name = network_.layers()[average.layer].spec.name;
    averages.parameters.push_back(read_back(network_.backend(), name + ".weight", average.weight.view()));
    averages.parameters.push_back(read_back(network_.backend(), name + ".bias", average.bias.view()));
  }
  return averages;
}

void MovingAverage::restore(const StateDict& averages) {
  if (averages.parameters.size() != 2 * averages_.size())
    fail<FormatError>("the checkpoint has averages of {} parameters, not of {}", averages.parameters.size(),
                      2 * averages_.size());
  for (Averaged& average : averages_) {
    const std::string& name = network_.layers()[average.layer].spec.name;
    restore_average(network_.backend(), average.weight, averages, name + ".weight");
    restore_average(network_.backend(), average.bias, averages, name + ".bias");
  }
}

}  // namespace nibblenet
