#include "layers/network/network.h"

#include <algorithm>

#include "layers/network/input_range.h"

namespace nibblenet {
namespace {

/// Sets the row of weights that are not packed.
void count_as(SizeRow& row, Precision stored) {
  row.scheme = to_string(stored);
  row.estimated.codes = static_cast<double>(bytes_of(stored)) * static_cast<double>(row.weights);
}

/// A layer's row of the ledger, but for its resident size.
SizeRow size_row(const LayerSpec& spec, const Parameter& weight, const Parameter& bias, Precision precision) {
  SizeRow row;
  row.name = spec.name;
  row.weights = weight.shape().elements();
  row.file = weight.file_bytes + bias.file_bytes;
  if (weight.packed()) {
    row.scheme = to_string(weight.packed_values().scheme);
    row.groups = weight.packed_values().groups();
    row.estimated = estimated_size(weight.packed_values());
  } else {
    count_as(row, storage_of(precision));
  }
  return row;
}

void load_layer(Layer& layer, Backend& backend, const Parameter& weight, const Parameter& bias, Precision precision,
                const InputRange& input, bool trained_in_fp16) {
  layer.weight = weight.packed()   ? backend.make_weight(weight.packed_values(), precision, input)
                 : trained_in_fp16 ? backend.training().make_trained_weight(weight.values().view())
                                   : backend.make_weight(weight.values().view(), precision);
  if (!weight.packed() && layer.weight->product_precision()) count_as(layer.size, *layer.weight->product_precision());
  layer.bias = Tensor<float>(backend, bias.shape(), MemoryCategory::biases);
  backend.copy_from_host(layer.bias.data(), bias.values().data(), layer.bias.view().span().size_bytes());
  layer.size.resident = layer.weight->resident();
  layer.size.resident.biases = static_cast<int64_t>(sizeof(float)) * bias.shape().elements();
}

/// Folds and uploads a layer. Packed weights are dequantized first: the folded filters are float32
/// or fp16 values, and count as such.
void load_folded_layer(Layer& layer, Backend& backend, const Parameter& weight, const Parameter& bias,
                       Precision precision, const ResampleTables& tables) {
  Tensor<float> dequantized;
  if (weight.packed()) {
    dequantized = Tensor<float>(host_memory(), weight.shape(), MemoryCategory::data);
    dequantize(weight.packed_values(), dequantized.view());
  }
  const Tensor<float>& values = weight.packed() ? dequantized : weight.values();
  const Window window = layer.spec.window;
  const FoldedConvolution folded =
      fold_convolution(values.view(), bias.values().view(), window.stride, window.padding, tables);
  layer.folded = backend.make_folded_conv2d(folded, storage_of(precision));
  layer.size.resident = layer.folded->resident();
  layer.size.scheme += " folded";
}

/// Returns false, and leaves the layer as it is, where the backend folds none or folding saves
/// nothing, unless it is required.
bool try_folded_layer(Layer& layer, Backend& backend, const Parameter& weight, const Parameter& bias,
                      Precision precision, const ResampleTables& tables, Folding folding) {
  try {
    load_folded_layer(layer, backend, weight, bias, precision, tables);
    return true;
  } catch (const UsageError&) {
    if (folding == Folding::required) throw;
    return false;
  }
}

}  // namespace

Parameter read_back(BackendMemory& backend, std::string name, TensorView<const float> values) {
  return {.name = std::move(name), .value = backend.read_back(values)};
}

Network::Network(Backend& backend, StateDict parameters, Precision precision, const ResampleTables* fold,
                 Folding folding, bool for_training)
    : backend_(&backend),
      spec_(&network_of(parameters)),
      precision_(precision),
      for_training_(for_training),
      file_bytes_(parameters.file_bytes),
      header_bytes_(parameters.header_bytes) {
  backend.expect_support(precision);
  bool behind_relu = false;
  for (LayerSpec& spec : layers_of(parameters)) {
    Layer layer;
    layer.spec = std::move(spec);
    if (layer.spec.has_parameters()) {
      Parameter& weight = parameters.at(layer.spec.name + ".weight");
      const Parameter& bias = parameters.at(layer.spec.name + ".bias");
      layer.size = size_row(layer.spec, weight, bias, precision);
      const bool may_fold = fold != nullptr && layers_.empty();
      if (!may_fold || !try_folded_layer(layer, backend, weight, bias, precision, *fold, folding))
        load_layer(layer, backend, weight, bias, precision,
                   input_range(parameters.metadata, layer.spec.name, behind_relu),
                   for_training && precision == Precision::float16);
      behind_relu = layer.spec.epilogue == Epilogue::relu;
      weight.value = Tensor<float>();
    }
    layers_.push_back(std::move(layer));
  }
  const auto flatten =
      std::ranges::find(layers_, LayerKind::flatten, [](const Layer& layer) { return layer.spec.kind; });
  classifier_begin_ = static_cast<size_t>(flatten - layers_.begin()) + 1;
  const auto first =
      std::find_if(flatten, layers_.end(), [](const Layer& layer) { return layer.spec.has_parameters(); });
  feature_count_ = first->spec.weight[1];
}

std::vector<SizeRow> Network::ledger() const {
  std::vector<SizeRow> rows;
  for (const Layer& layer : layers_)
    if (layer.spec.has_parameters()) rows.push_back(layer.size);
  return rows;
}

}  // namespace nibblenet
