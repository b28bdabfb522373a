#include "training/trained_parameters.h"

#include <algorithm>
#include <cmath>

namespace nibblenet {
namespace {

Tensor<float> zeros(Backend& backend, const Shape& shape) {
  Tensor<float> tensor(backend, shape, MemoryCategory::optimizer);
  const std::vector<float> values(static_cast<size_t>(shape.elements()));
  backend.copy_from_host(tensor.data(), values.data(), values.size() * sizeof(float));
  return tensor;
}

void load(Backend& backend, Tensor<float>& target, const StateDict& momenta, const std::string& name) {
  const Tensor<float>& source = momenta.at(name).values();
  expect_shape(source.shape(), target.shape(), "momentum of " + name);
  backend.copy_from_host(target.data(), source.data(), source.view().span().size_bytes());
}

std::string weight_name(const Layer& layer) { return layer.spec.name + ".weight"; }
std::string bias_name(const Layer& layer) { return layer.spec.name + ".bias"; }

}  // namespace

TrainedParameters::TrainedParameters(Network& network, size_t first, Learned learned)
    : network_(network), learned_(learned) {
  Backend& backend = network.backend();
  for (size_t i = first; i < network.layers().size(); ++i) {
    const LayerSpec& spec = network.layers()[i].spec;
    if (!spec.has_parameters()) continue;
    Trained& trained = trained_.emplace_back();
    trained.layer = i;
    if (learned == Learned::scales) {
      trained.bias_adam = Adam(static_cast<size_t>(spec.weight[0]));
      continue;
    }
    trained.weight_momentum = zeros(backend, spec.weight);
    trained.bias_momentum = zeros(backend, {spec.weight[0]});
  }
}

void TrainedParameters::quantize(StateDict packed, bool keep_zeros) {
  Backend& backend = network_.backend();
  for (size_t i = 0; i < network_.layers().size(); ++i) {
    Layer& layer = network_.layers()[i];
    if (!layer.spec.has_parameters() || !packed.at(weight_name(layer)).packed()) continue;
    Parameter& weight = packed.at(weight_name(layer));
    const auto trained = std::ranges::find(trained_, i, &Trained::layer);
    if (trained == trained_.end()) {
      layer.weight = backend.make_weight(weight.packed_values());
      frozen_packed_.push_back(std::move(weight));
      continue;
    }
    if (learned_ == Learned::scales) {
      trained->quantized = std::make_unique<QuantizedWeight>(backend, weight.packed_values(), weight_name(layer));
    } else {
      const std::vector<float> master = network_.backend().to_host(weights_of(*trained));
      trained->quantized = std::make_unique<QuantizedWeight>(backend, weight.packed_values(),
                                                             TensorView<const float>(master.data(), layer.spec.weight),
                                                             keep_zeros, weight_name(layer));
    }
    round(*trained);
    quantized_ = true;
  }
}

void TrainedParameters::update(Layer& layer, const GradientSource& gradient, const SgdParameters& parameters,
                               int64_t number) {
  Trained& trained = trained_of(layer);
  if (!trained.quantized && learned_ == Learned::everything && gradient.fuses_step())
    return gradient.apply(
        {*layer.weight, layer.bias.view(), trained.weight_momentum.view(), trained.bias_momentum.view()}, parameters);
  update(layer, gradient.store(), parameters, number);
}

void TrainedParameters::update(Layer& layer, const StoredGradients& gradients, const SgdParameters& parameters,
                               int64_t number) {
  Trained& trained = trained_of(layer);
  const auto [dw, dbias] = gradients;
  if (learned_ == Learned::scales) {
    update_scales(trained, dw, dbias, static_cast<double>(parameters.learning_rate), number);
    return;
  }
  Training& backend = network_.backend().training();
  backend.sgd_step(layer.bias.view(), trained.bias_momentum.view(), dbias, parameters.of_bias());
  if (trained.quantized)
    trained.quantized->step(dw, trained.weight_momentum.view(), parameters);
  else
    backend.sgd_step(layer.weight->values(), trained.weight_momentum.view(), dw, parameters);
  round(trained);
}

void TrainedParameters::keep_parts(const std::function<IndexRange(size_t)>& part_of) {
  Backend& backend = network_.backend();
  for (Trained& trained : trained_) {
    trained.part = part_of(trained.layer);
    std::vector<float> momenta = backend.to_host(trained.weight_momentum.view());
    const std::vector<float> of_biases = backend.to_host(trained.bias_momentum.view());
    momenta.insert(momenta.end(), of_biases.begin(), of_biases.end());
    trained.part_momentum = Tensor<float>(backend, {trained.part.size()}, MemoryCategory::optimizer);
    backend.copy_from_host(trained.part_momentum.data(), momenta.data() + trained.part.begin,
                           static_cast<size_t>(trained.part.size()) * sizeof(float));
    trained.weight_momentum = {};
    trained.bias_momentum = {};
  }
  in_parts_ = true;
}

void TrainedParameters::update_part(Layer& layer, std::span<const float> gradients, const SgdParameters& parameters,
                                    ParameterSteps& by) {
  Trained& trained = trained_of(layer);
  const int64_t weights = layer.spec.weight.elements();
  const IndexRange of_weights{std::min(trained.part.begin, weights), std::min(trained.part.end, weights)};
  const IndexRange of_biases{std::max(trained.part.begin, weights) - weights,
                             std::max(trained.part.end, weights) - weights};
  float* momenta = trained.part_momentum.data();
  const float* gradient = gradients.data();
  const auto step = [&](TensorView<float> values, IndexRange range, const SgdParameters& rates) {
    if (range.size() == 0) return;
    by.sgd_step({values.data() + range.begin, {range.size()}}, {momenta, {range.size()}}, {gradient, {range.size()}},
                rates);
    momenta += range.size();
    gradient += range.size();
  };
  step(layer.weight->values(), of_weights, parameters);
  step(layer.bias.view(), of_biases, parameters.of_bias());
}

void TrainedParameters::changed() const {
  for (const Trained& trained : trained_) layer_of(trained).weight->changed();
}

std::vector<float> TrainedParameters::momenta_of(size_t layer) const {
  return network_.backend().to_host(std::ranges::find(trained_, layer, &Trained::layer)->part_momentum.view());
}

StateDict TrainedParameters::room_for_momenta() const {
  StateDict room;
  for (const Trained& trained : trained_) {
    const LayerSpec& spec = layer_of(trained).spec;
    room.parameters.push_back(
        {.name = spec.name + ".weight", .value = Tensor<float>(host_memory(), spec.weight, MemoryCategory::optimizer)});
    room.parameters.push_back({.name = spec.name + ".bias",
                               .value = Tensor<float>(host_memory(), {spec.weight[0]}, MemoryCategory::optimizer)});
  }
  return room;
}

StoredGradients TrainedParameters::momenta_in(StateDict& room, size_t layer) const {
  const std::string& name = network_.layers()[layer].spec.name;
  return {room.at(name + ".weight").values().view(), room.at(name + ".bias").values().view()};
}

TrainedParameters::Trained& TrainedParameters::trained_of(const Layer& layer) {
  return *std::ranges::find(trained_, static_cast<size_t>(&layer - network_.layers().data()), &Trained::layer);
}

void TrainedParameters::update_scales(Trained& trained, TensorView<float> dw, TensorView<float> dbias,
                                      double learning_rate, int64_t number) {
  Backend& backend = network_.backend();
  const TensorView<float> bias = layer_of(trained).bias.view();
  std::vector<float> values = backend.to_host(bias);
  trained.bias_adam.step(values, backend.to_host(dbias), learning_rate, number);
  backend.copy_from_host(bias.data(), values.data(), values.size() * sizeof(float));
  if (!trained.quantized) return;
  trained.quantized->step_scales(dw, learning_rate, number);
  round(trained);
}

TensorView<float> TrainedParameters::weights_of(const Trained& trained) const {
  return trained.quantized ? trained.quantized->master() : layer_of(trained).weight->values();
}

void TrainedParameters::set_weights(const Trained& trained, const std::vector<float>& weights) {
  network_.backend().copy_from_host(weights_of(trained).data(), weights.data(), weights.size() * sizeof(float));
  round(trained);
}

/// Must follow every change of a weight.
void TrainedParameters::round(const Trained& trained) {
  Weight& weight = *layer_of(trained).weight;
  if (trained.quantized) trained.quantized->round(weight.values());
  weight.changed();
}

std::vector<double> TrainedParameters::pruned() const {
  std::vector<double> fractions;
  for (const Trained& trained : trained_) {
    const std::vector<float> weights = network_.backend().to_host(weights_of(trained));
    fractions.push_back(static_cast<double>(count_zeros(weights)) / static_cast<double>(weights.size()));
  }
  return fractions;
}

void TrainedParameters::prune(const PruningOptions& options, const std::vector<double>& from, double progress) {
  if (from.size() != trained_.size()) fail<FormatError>("the checkpoint's sparsities do not fit the trained layers");
  std::vector<std::vector<float>> weights;
  std::vector<std::span<float>> together;  // of one threshold
  std::vector<size_t> alone;
  double zeros_before = 0, weights_together = 0;
  for (size_t i = 0; i < trained_.size(); ++i) {
    weights.push_back(network_.backend().to_host(weights_of(trained_[i])));
    if (!options.global || options.layers.contains(layer_of(trained_[i]).spec.name)) {
      alone.push_back(i);
      continue;
    }
    together.emplace_back(weights[i]);
    zeros_before += from[i] * static_cast<double>(weights[i].size());
    weights_together += static_cast<double>(weights[i].size());
  }
  for (const size_t i : alone) {
    const auto own = options.layers.find(layer_of(trained_[i]).spec.name);
    const double target = own == options.layers.end() ? options.fraction : own->second;
    const std::span<float> layer(weights[i]);
    prune_smallest({&layer, 1}, ramped_fraction(from[i], target, progress));
  }
  if (!together.empty())
    prune_smallest(together, ramped_fraction(zeros_before / weights_together, options.fraction, progress));
  for (size_t i = 0; i < trained_.size(); ++i) set_weights(trained_[i], weights[i]);
}

std::vector<LayerSparsity> TrainedParameters::sparsity() const {
  std::vector<LayerSparsity> layers;
  for (const Trained& trained : trained_) {
    const Layer& layer = layer_of(trained);
    const Parameter values = read_back(network_.backend(), layer.spec.name, layer.weight->values());
    layers.push_back({layer.spec.name, layer.spec.weight.elements(), count_zeros(values.values().view().span())});
  }
  return layers;
}

StateDict TrainedParameters::model() const {
  StateDict model;
  for (size_t i = 0; i < network_.layers().size(); ++i) {
    const Layer& layer = network_.layers()[i];
    if (!layer.spec.has_parameters()) continue;
    const auto trained = std::ranges::find(trained_, i, &Trained::layer);
    Parameter weight{.name = weight_name(layer)};
    if (trained != trained_.end() && trained->quantized)
      weight.value = trained->quantized->packed();
    else if (layer.weight->packed())
      weight.value = std::ranges::find(frozen_packed_, weight.name, &Parameter::name)->packed_values();
    else
      weight = read_back(network_.backend(), weight.name, layer.weight->values());
    model.parameters.push_back(std::move(weight));
    model.parameters.push_back(read_back(network_.backend(), bias_name(layer), layer.bias.view()));
  }
  return model;
}

void TrainedParameters::save(StateDict& masters, StateDict& momenta) const {
  Backend& backend = network_.backend();
  for (const Trained& trained : trained_) {
    const Layer& layer = layer_of(trained);
    if (learned_ == Learned::scales) {
      trained.bias_adam.save(momenta, bias_name(layer));
    } else if (!in_parts_) {
      momenta.parameters.push_back(read_back(backend, weight_name(layer), trained.weight_momentum.view()));
      momenta.parameters.push_back(read_back(backend, bias_name(layer), trained.bias_momentum.view()));
    }
    if (trained.quantized) trained.quantized->save(masters, momenta);
  }
}

void TrainedParameters::restore(const StateDict& masters, const StateDict& momenta) {
  for (Trained& trained : trained_) {
    const Layer& layer = layer_of(trained);
    if (learned_ == Learned::scales) {
      trained.bias_adam.restore(momenta, bias_name(layer));
    } else {
      load(network_.backend(), trained.weight_momentum, momenta, weight_name(layer));
      load(network_.backend(), trained.bias_momentum, momenta, bias_name(layer));
    }
    if (!trained.quantized) continue;
    trained.quantized->restore(masters, momenta);
    round(trained);
  }
}

}  // namespace nibblenet
