#pragma once

#include <span>

#include "engine/core/random.h"
#include "layers/network/network.h"
#include "layers/network/pass.h"

namespace nibblenet::testing {

inline const NetworkSpec& alexnet = network_named("alexnet");
inline const NetworkSpec& vgg16 = network_named("vgg16");

/// What a network computes on the CPU of images [N, height, width, 3]: [N, classes].
inline Tensor<float> logits_of(StateDict dict, const Tensor<float>& images) {
  const auto backend = make_backend("cpu", 0);
  Network network(*backend, std::move(dict));
  Pass pass(network, 0, network.layers().size(), images.shape(), Pass::Mode::inference);
  const auto logits = pass.forward(images.view());
  Tensor<float> copy(host_memory(), logits.shape(), MemoryCategory::data);
  backend->copy_to_host(copy.data(), logits.data(), logits.span().size_bytes());
  return copy;
}

/// A network of given weights, and of random biases.
inline StateDict network_of_sizes(const std::vector<std::pair<std::string, Shape>>& weights, uint64_t seed) {
  StateDict dict;
  for (const auto& [name, shape] : weights) {
    Parameter weight{.name = name + ".weight", .value = Tensor<float>(host_memory(), shape, MemoryCategory::data)};
    Parameter bias{.name = name + ".bias", .value = Tensor<float>(host_memory(), {shape[0]}, MemoryCategory::data)};
    initialise(weight, bias, seed, name == weights.back().first);
    Random random(seed, static_cast<uint64_t>(shape.elements()));
    for (float& value : bias.values().view()) value = 0.2F * random.uniform() - 0.1F;
    dict.parameters.push_back(std::move(weight));
    dict.parameters.push_back(std::move(bias));
  }
  return dict;
}

/// A copy of a float network's parameters in host memory.
inline StateDict state_of(const Network& network) {
  StateDict dict;
  for (const Layer& layer : network.layers()) {
    if (!layer.spec.has_parameters()) continue;
    dict.parameters.push_back(read_back(network.backend(), layer.spec.name + ".weight", layer.weight->values()));
    dict.parameters.push_back(read_back(network.backend(), layer.spec.name + ".bias", layer.bias.view()));
  }
  return dict;
}

/// An AlexNet of small odd sizes, about 60,000 weights: the real table in a thousandth of the
/// time.
inline StateDict small_alexnet(uint64_t seed, int64_t classes = 10) {
  return network_of_sizes({{"features.0", {9, 3, 11, 11}},
                           {"features.3", {13, 9, 5, 5}},
                           {"features.6", {17, 13, 3, 3}},
                           {"features.8", {11, 17, 3, 3}},
                           {"features.10", {10, 11, 3, 3}},
                           {"classifier.1", {67, 360}},
                           {"classifier.4", {35, 67}},
                           {"classifier.6", {classes, 35}}},
                          seed);
}

/// An AlexNet of whole superblocks of 64 x 64, but for the first and the last layer.
inline StateDict even_alexnet(uint64_t seed) {
  return network_of_sizes({{"features.0", {64, 3, 11, 11}},
                           {"features.3", {64, 64, 5, 5}},
                           {"features.6", {64, 64, 3, 3}},
                           {"features.8", {64, 64, 3, 3}},
                           {"features.10", {64, 64, 3, 3}},
                           {"classifier.1", {64, 2304}},
                           {"classifier.4", {64, 64}},
                           {"classifier.6", {10, 64}}},
                          seed);
}

/// A VGG-16 whose convolutions have these numbers of output channels.
inline StateDict vgg16_of(const std::array<int64_t, 13>& outputs, uint64_t seed, int64_t classes = 10) {
  std::vector<int64_t> channels = {3};
  channels.insert(channels.end(), outputs.begin(), outputs.end());
  std::vector<std::pair<std::string, Shape>> weights;
  const std::vector<std::string> features = feature_names(vgg16);
  for (size_t i = 0; i < features.size(); ++i) weights.push_back({features[i], {channels[i + 1], channels[i], 3, 3}});
  weights.push_back({"classifier.0", {17, channels.back() * 7 * 7}});
  weights.push_back({"classifier.3", {13, 17}});
  weights.push_back({"classifier.6", {classes, 13}});
  return network_of_sizes(weights, seed);
}

/// A VGG-16 of small odd sizes, about 9,000 weights.
inline StateDict small_vgg16(uint64_t seed, int64_t classes = 10) {
  return vgg16_of({5, 7, 4, 9, 6, 11, 8, 5, 10, 7, 12, 9, 6}, seed, classes);
}

/// A VGG-16 whose channels are multiples of 8, in its last layers whole superblocks.
inline StateDict even_vgg16(uint64_t seed) {
  return vgg16_of({8, 8, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64}, seed);
}

/// Uniform in [-1, 1).
inline Tensor<float> random_tensor(const Shape& shape, uint64_t seed) {
  Tensor<float> tensor(host_memory(), shape, MemoryCategory::data);
  Random random(seed, 77);
  for (float& value : tensor.view()) value = 2.0F * random.uniform() - 1.0F;
  return tensor;
}

/// Packs every weight (not the biases) by one scheme, rotated where that can be.
inline void pack_all(StateDict& dict, const Scheme& scheme) {
  for (Parameter& parameter : dict.parameters)
    if (parameter.shape().rank() > 1)
      parameter.value =
          quantize(std::as_const(parameter).values().view(), fitted(scheme, dict, parameter), parameter.name);
}

inline bool same_bits(const StateDict& a, const StateDict& b) {
  if (a.parameters.size() != b.parameters.size()) return false;
  for (const Parameter& parameter : a.parameters) {
    const auto x = parameter.values().view().span();
    const auto y = b.at(parameter.name).values().view().span();
    if (x.size() != y.size() || std::memcmp(x.data(), y.data(), x.size_bytes()) != 0) return false;
  }
  return true;
}

}  // namespace nibblenet::testing
