#include "layers/network/network_spec.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <ranges>

#include "engine/core/random.h"
#include "engine/io/safetensors_header.h"
#include "engine/quant/hadamard.h"
#include "engine/quant/text.h"

namespace nibblenet {
namespace {

constexpr int64_t image_channels = 3;
constexpr int64_t largest_image = 4096;
constexpr int default_image_size = 224;

std::string weight_of(const LayerRow& row) { return std::string(row.name) + ".weight"; }

/// The names, or titles, of all networks as a list for messages.
std::string all_of(std::string_view NetworkSpec::*text) {
  return fmt::format("{}", fmt::join(std::views::transform(networks(), text), ", "));
}

std::vector<std::string> names_of(const NetworkSpec& network, auto&& wanted) {
  std::vector<std::string> names;
  for (const LayerRow& row : network.layers)
    if (wanted(row.kind)) names.emplace_back(row.name);
  return names;
}

/// "'layer1.0.conv1.weight', 'fc.bias' and 100 more": for messages about a file that does not fit.
std::string some_names(const StateDict& parameters) {
  const size_t count = parameters.parameters.size();
  if (count == 0) return "none at all";
  const std::string text =
      in_quotes(parameters.parameters.front().name) + ", " + in_quotes(parameters.parameters.back().name);
  return count > 2 ? fmt::format("{} and {} more", text, count - 2) : text;
}

const Shape& shape_of(const NetworkSpec& network, const StateDict& parameters, const std::string& name) {
  const Parameter* found = parameters.find(name);
  if (found == nullptr)
    fail<FormatError>("the model has no parameter {}: not the state dict of {}? it has {}", name, network.title,
                      some_names(parameters));
  return found->shape();
}

Shape weight_shape(const NetworkSpec& network, const StateDict& parameters, const LayerRow& row) {
  const Shape weight = shape_of(network, parameters, weight_of(row));
  const Shape bias = shape_of(network, parameters, std::string(row.name) + ".bias");
  const int rank = row.kind == LayerKind::conv2d ? 4 : 2;
  if (weight.rank() != rank)
    fail<FormatError>("{}.weight has shape {}, expected {} dimensions", row.name, to_string(weight), rank);
  if (weight.elements() == 0 || bias != Shape{weight[0]})
    fail<FormatError>("{}: weight {} and bias {} do not fit", row.name, to_string(weight), to_string(bias));
  return weight;
}

/// Throws FormatError for a grouped convolution: its filters have half as many channels as the
/// layer in front of it gives.
void refuse_two_towers(std::string_view weight, const Shape& shape, int64_t channels) {
  if (shape.rank() == 4 && 2 * shape[1] == channels)
    fail<FormatError>(
        "{} has shape {} behind {} channels: a grouped convolution, as in the AlexNet of two towers of 2012, which "
        "is not supported; use torchvision's AlexNet, of one tower",
        weight, to_string(shape), channels);
}

/// Looks for a grouped convolution in a state dict whose names are of no network.
void refuse_two_towers(const StateDict& parameters) {
  int64_t channels = 0;
  for (const Parameter& parameter : parameters.parameters) {
    if (parameter.shape().rank() != 4) continue;
    refuse_two_towers(parameter.name, parameter.shape(), channels);
    channels = parameter.shape()[0];
  }
}

void expect_inputs(const LayerRow& row, const Shape& weight, int64_t inputs) {
  if (row.kind == LayerKind::linear && weight[1] != inputs)
    fail<FormatError>("{}.weight has shape {}, expected {} inputs", row.name, to_string(weight), inputs);
  if (row.kind == LayerKind::conv2d) refuse_two_towers(weight_of(row), weight, inputs);
  if (row.kind == LayerKind::conv2d && (weight[1] != inputs || weight[2] != weight[3]))
    fail<FormatError>("{}.weight has shape {}, expected {} input channels and a square window", row.name,
                      to_string(weight), inputs);
}

Parameter empty_parameter(std::string name, Shape shape) {
  Parameter parameter;
  parameter.name = std::move(name);
  parameter.value = Tensor<float>(host_memory(), shape, MemoryCategory::data);
  return parameter;
}

/// Puts a fresh layer into the dict, over one of that name if there is one.
void put_layer(StateDict& parameters, const std::string& name, Shape weight_shape, uint64_t seed, bool last) {
  Parameter weight = empty_parameter(name + ".weight", weight_shape);
  Parameter bias = empty_parameter(name + ".bias", {weight_shape[0]});
  initialise(weight, bias, seed, last);
  for (Parameter* fresh : {&weight, &bias}) {
    if (Parameter* old = parameters.find(fresh->name)) {
      *old = std::move(*fresh);
    } else {
      parameters.parameters.push_back(std::move(*fresh));
    }
  }
}

}  // namespace

const NetworkSpec& network_named(std::string_view name) {
  const auto found = std::ranges::find(networks(), name, &NetworkSpec::name);
  if (found == networks().end())
    fail<UsageError>("unknown network '{}'; supported: {}", name, all_of(&NetworkSpec::name));
  return *found;
}

const NetworkSpec& network_of(const StateDict& parameters) {
  const auto missing = [&](const NetworkSpec& network) {
    return std::ranges::count_if(network.layers, [&](const LayerRow& row) {
      return has_parameters(row.kind) && parameters.find(weight_of(row)) == nullptr;
    });
  };
  const auto nearest = std::ranges::min_element(networks(), {}, missing);
  if (missing(*nearest) > 0) refuse_two_towers(parameters);
  if (missing(*nearest) == static_cast<int64_t>(layer_names(*nearest).size()))
    fail<FormatError>("the model has no layer of a network that this program knows ({}); it has {}",
                      all_of(&NetworkSpec::title), some_names(parameters));
  return *nearest;
}

std::vector<std::string> feature_names(const NetworkSpec& network) {
  return names_of(network, [](LayerKind kind) { return kind == LayerKind::conv2d; });
}

std::vector<std::string> classifier_names(const NetworkSpec& network) {
  return names_of(network, [](LayerKind kind) { return kind == LayerKind::linear; });
}

std::vector<std::string> layer_names(const NetworkSpec& network) { return names_of(network, has_parameters); }

int64_t inputs_of_a_channel(const StateDict& parameters, std::string_view weight) {
  const NetworkSpec& network = network_of(parameters);
  const std::string last_features = feature_names(network).back() + ".weight";
  if (weight != classifier_names(network).front() + ".weight") return 1;
  const Parameter *linear = parameters.find(std::string(weight)), *features = parameters.find(last_features);
  if (linear == nullptr || features == nullptr || linear->shape().rank() != 2 || features->shape().rank() != 4)
    return 1;
  const int64_t inputs = linear->shape()[1], channels = features->shape()[0];
  return channels > 0 && inputs % channels == 0 ? inputs / channels : 1;
}

Scheme fitted(Scheme scheme, const StateDict& parameters, const Parameter& weight) {
  if (scheme.rotated == 1) scheme.rotated = inputs_of_a_channel(parameters, weight.name);
  return rotated_where_possible(scheme, weight.shape());
}

std::vector<LayerSpec> layers_of(const StateDict& parameters) {
  const NetworkSpec& network = network_of(parameters);
  std::vector<LayerSpec> layers;
  int64_t inputs = image_channels;
  for (const LayerRow& row : network.layers) {
    LayerSpec layer{.kind = row.kind, .name = std::string(row.name), .window = row.window};
    if (row.kind == LayerKind::adaptive_average_pool2d) layer.output_size = row.outputs;
    if (row.kind == LayerKind::flatten) inputs *= layers.back().output_size * layers.back().output_size;
    if (layer.has_parameters()) {
      layer.weight = weight_shape(network, parameters, row);
      expect_inputs(row, layer.weight, inputs);
      inputs = layer.weight[0];
      if (row.kind == LayerKind::conv2d) layer.window.size = layer.weight[2];
      if (&row != &network.layers.back()) layer.epilogue = Epilogue::relu;
    }
    layers.push_back(std::move(layer));
  }
  for (const Parameter& parameter : parameters.parameters)
    if (std::ranges::none_of(layers, [&](const LayerSpec& layer) {
          return layer.has_parameters() &&
                 (parameter.name == layer.name + ".weight" || parameter.name == layer.name + ".bias");
        }))
      fail<FormatError>("the model has a parameter {}, which {} has not", in_quotes(parameter.name), network.title);
  return layers;
}

void initialise(Parameter& weight, Parameter& bias, uint64_t seed, bool last) {
  uint64_t stream = 0xCBF29CE484222325ULL;  // FNV-1a of the name: adding a layer does not change the others
  for (const char c : weight.name) stream = (stream ^ static_cast<uint8_t>(c)) * 0x100000001B3ULL;
  const auto fan_in = static_cast<float>(weight.shape().inner_elements());
  const float bound = std::sqrt((last ? 1.0F : 6.0F) / fan_in);
  Random random(seed, stream);
  for (float& w : weight.values().view()) w = (2.0F * random.uniform() - 1.0F) * bound;
  std::ranges::fill(bias.values().view(), 0.0F);
}

StateDict random_network(const NetworkSpec& network, int64_t classes, uint64_t seed) {
  StateDict parameters;
  int64_t inputs = image_channels, pooled = 1;
  for (const LayerRow& row : network.layers) {
    if (row.kind == LayerKind::adaptive_average_pool2d) pooled = row.outputs;
    if (row.kind == LayerKind::flatten) inputs *= pooled * pooled;
    if (!has_parameters(row.kind)) continue;
    const int64_t outputs = row.outputs > 0 ? row.outputs : classes, size = row.window.size;
    const Shape shape = row.kind == LayerKind::conv2d ? Shape{outputs, inputs, size, size} : Shape{outputs, inputs};
    put_layer(parameters, std::string(row.name), shape, seed, &row == &network.layers.back());
    inputs = outputs;
  }
  return parameters;
}

void reset_head(StateDict& parameters, Reset reset, int64_t classes, uint64_t seed) {
  if (reset == Reset::none) return;
  const NetworkSpec& network = network_of(parameters);
  const std::vector<LayerSpec> layers = layers_of(parameters);
  auto left = static_cast<int64_t>(classifier_names(network).size());  // linear layers from this one on
  int64_t inputs = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].kind != LayerKind::linear) continue;
    const Shape& old = layers[i].weight;
    if (inputs == 0) inputs = old[1];
    const bool in_tail = left-- <= network.tail;
    const int64_t fresh = network.layers[i].outputs > 0 ? network.layers[i].outputs : classes;
    const int64_t outputs = in_tail ? fresh : old[0];
    if (in_tail || reset == Reset::classifier)
      put_layer(parameters, layers[i].name, {outputs, inputs}, seed, i + 1 == layers.size());
    inputs = outputs;
  }
}

int64_t class_count(const StateDict& parameters) { return layers_of(parameters).back().weight[0]; }

int image_size_of(const StateDict& parameters, int asked) {
  const NetworkSpec& network = network_of(parameters);
  if (asked != 0) {
    expect_image_size(network, asked);
    return asked;
  }
  const auto found = parameters.metadata.find(image_size_key);
  if (found == parameters.metadata.end()) return default_image_size;
  const std::optional<int64_t> size = parse_integer(found->second);
  if (!size || *size < network.smallest_image || *size > largest_image)
    fail<FormatError>("the model's metadata names the image size '{}': not a size this network takes", found->second);
  return static_cast<int>(*size);
}

void expect_image_size(const NetworkSpec& network, int64_t size) {
  if (size < network.smallest_image || size > largest_image)
    fail<UsageError>("--image-size {}: must lie in {}…{} for {}", size, network.smallest_image, largest_image,
                     network.title);
}

}  // namespace nibblenet
