#include "layers/network/alexnet.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "engine/core/random.h"
#include "layers/conv2d.h"
#include "layers/pooling.h"

namespace nibblenet {
namespace {

constexpr int64_t pooled_size = 6;  // adaptive average pooling gives 6 x 6
constexpr Window pooling{.size = 3, .stride = 2, .padding = 0};

/// What the state dict does not say about the five convolutions.
struct FeatureRow {
  std::string_view name;
  int64_t stride;
  int64_t padding;
  bool pooled;
};
constexpr std::array<FeatureRow, 5> feature_rows = {{{"features.0", 4, 2, true},
                                                     {"features.3", 1, 2, true},
                                                     {"features.6", 1, 1, false},
                                                     {"features.8", 1, 1, false},
                                                     {"features.10", 1, 1, true}}};
constexpr std::array<std::string_view, 3> classifier_rows = {"classifier.1", "classifier.4", "classifier.6"};

Shape weight_shape(const StateDict& parameters, const std::string& name, int rank) {
  const Shape& weight = parameters.at(name + ".weight").shape();
  const Shape& bias = parameters.at(name + ".bias").shape();
  if (weight.rank() != rank)
    fail<FormatError>("{}.weight has shape {}, expected {} dimensions", name, to_string(weight), rank);
  if (weight.elements() == 0 || bias != Shape{weight[0]})
    fail<FormatError>("{}: weight {} and bias {} do not fit", name, to_string(weight), to_string(bias));
  return weight;
}

Parameter empty_parameter(std::string name, Shape shape) {
  Parameter parameter;
  parameter.name = std::move(name);
  parameter.value = Tensor<float>(host_memory(), shape, MemoryCategory::data);
  return parameter;
}

/// Puts a fresh layer into the dict, in the place of one of that name if there is one.
void put_layer(StateDict& parameters, const std::string& name, Shape weight_shape, uint64_t seed) {
  Parameter weight = empty_parameter(name + ".weight", weight_shape);
  Parameter bias = empty_parameter(name + ".bias", {weight_shape[0]});
  initialise(weight, bias, seed);
  for (Parameter* fresh : {&weight, &bias}) {
    if (Parameter* old = parameters.find(fresh->name)) {
      *old = std::move(*fresh);
    } else {
      parameters.parameters.push_back(std::move(*fresh));
    }
  }
}

std::vector<std::string> names_of(auto& rows, auto name) {
  std::vector<std::string> names;
  names.reserve(rows.size());
  for (const auto& row : rows) names.emplace_back(name(row));
  return names;
}

}  // namespace

const std::vector<std::string>& alexnet_feature_names() {
  static const auto names = names_of(feature_rows, [](const FeatureRow& row) { return row.name; });
  return names;
}

const std::vector<std::string>& alexnet_classifier_names() {
  static const auto names = names_of(classifier_rows, [](std::string_view name) { return name; });
  return names;
}

Shape LayerSpec::output_shape(const Shape& input) const {
  switch (kind) {
    case LayerKind::conv2d:
      return conv2d_output_shape(input, weight, window);
    case LayerKind::max_pool2d:
      return max_pool2d_output_shape(input, window);
    case LayerKind::adaptive_average_pool2d:
      return {input[0], output_size, output_size, input[3]};
    case LayerKind::flatten:
      return {input[0], input.inner_elements()};
    case LayerKind::dropout:
      return input;
    case LayerKind::linear:
      if (input.rank() != 2 || input[1] != weight[1])
        fail<ShapeError>("{}: input {} does not fit weight {}", name, to_string(input), to_string(weight));
      return {input[0], weight[0]};
  }
  fail<ShapeError>("unknown layer kind {}", static_cast<int>(kind));
}

std::vector<LayerSpec> alexnet_layers(const StateDict& parameters) {
  std::vector<LayerSpec> layers;
  int64_t channels = 3;
  for (const FeatureRow& row : feature_rows) {
    const Shape weight = weight_shape(parameters, std::string(row.name), 4);
    if (weight[1] != channels || weight[2] != weight[3])
      fail<FormatError>("{}.weight has shape {}, expected {} input channels and a square window", row.name,
                        to_string(weight), channels);
    channels = weight[0];
    layers.push_back({.kind = LayerKind::conv2d,
                      .name = std::string(row.name),
                      .weight = weight,
                      .window = {weight[2], row.stride, row.padding},
                      .epilogue = Epilogue::relu});
    if (row.pooled) layers.push_back({.kind = LayerKind::max_pool2d, .window = pooling});
  }
  layers.push_back({.kind = LayerKind::adaptive_average_pool2d, .output_size = pooled_size});
  layers.push_back({.kind = LayerKind::flatten});
  int64_t inputs = channels * pooled_size * pooled_size;
  for (size_t i = 0; i < classifier_rows.size(); ++i) {
    const std::string name(classifier_rows[i]);
    const Shape weight = weight_shape(parameters, name, 2);
    if (weight[1] != inputs)
      fail<FormatError>("{}.weight has shape {}, expected {} inputs", name, to_string(weight), inputs);
    inputs = weight[0];
    const bool last = i + 1 == classifier_rows.size();
    if (!last) layers.push_back({.kind = LayerKind::dropout});
    layers.push_back({.kind = LayerKind::linear,
                      .name = name,
                      .weight = weight,
                      .epilogue = last ? Epilogue::none : Epilogue::relu});
  }
  const size_t expected = 2 * (feature_rows.size() + classifier_rows.size());
  if (parameters.parameters.size() != expected)
    fail<FormatError>("the model has {} parameters, an AlexNet has {}", parameters.parameters.size(), expected);
  return layers;
}

void initialise(Parameter& weight, Parameter& bias, uint64_t seed) {
  uint64_t stream = 0xCBF29CE484222325ULL;  // FNV-1a of the name: adding a layer does not change the others
  for (const char c : weight.name) stream = (stream ^ static_cast<uint8_t>(c)) * 0x100000001B3ULL;
  const auto fan_in = static_cast<float>(weight.shape().inner_elements());
  const bool last = weight.name.starts_with(classifier_rows.back());
  const float bound = std::sqrt((last ? 1.0F : 6.0F) / fan_in);
  Random random(seed, stream);
  for (float& w : weight.values().view()) w = (2.0F * random.uniform() - 1.0F) * bound;
  std::ranges::fill(bias.values().view(), 0.0F);
}

StateDict random_alexnet(int64_t classes, uint64_t seed) {
  constexpr std::array<std::array<int64_t, 3>, 5> filters = {
      {{64, 3, 11}, {192, 64, 5}, {384, 192, 3}, {256, 384, 3}, {256, 256, 3}}};
  StateDict parameters;
  for (size_t i = 0; i < filters.size(); ++i) {
    const auto [k, c, r] = filters[i];
    put_layer(parameters, std::string(feature_rows[i].name), {k, c, r, r}, seed);
  }
  put_layer(parameters, "classifier.1", {4096, 9216}, seed);
  reset_head(parameters, Reset::tail, classes, seed);
  return parameters;
}

void reset_head(StateDict& parameters, Reset reset, int64_t classes, uint64_t seed) {
  if (reset == Reset::none) return;
  Shape first = parameters.at("classifier.1.weight").shape();
  if (first.rank() != 2) fail<FormatError>("classifier.1.weight has shape {}, expected 2 dimensions", to_string(first));
  if (reset == Reset::classifier) put_layer(parameters, "classifier.1", first, seed);
  put_layer(parameters, "classifier.4", {1024, first[0]}, seed);
  put_layer(parameters, "classifier.6", {classes, 1024}, seed);
}

int64_t class_count(const StateDict& parameters) { return parameters.at("classifier.6.weight").shape()[0]; }

}  // namespace nibblenet
