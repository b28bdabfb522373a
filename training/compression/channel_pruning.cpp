#include "training/compression/channel_pruning.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "layers/network/network_spec.h"

namespace nibblenet {
namespace {

/// values[K, ...] of some rows only.
Tensor<float> rows_of(const Tensor<float>& values, std::span<const int64_t> rows) {
  const Shape& all = values.shape();
  std::vector<int64_t> sizes(all.sizes().begin(), all.sizes().end());
  sizes[0] = static_cast<int64_t>(rows.size());
  Tensor<float> result(host_memory(), Shape(sizes), MemoryCategory::data);
  float* to = result.data();
  for (const int64_t row : rows) to = std::copy_n(values.data() + row * all.inner_elements(), all.inner_elements(), to);
  return result;
}

std::vector<float> rows_of(std::span<const float> values, std::span<const int64_t> rows) {
  std::vector<float> result;
  if (!values.empty())
    for (const int64_t row : rows) result.push_back(values[static_cast<size_t>(row)]);
  return result;
}

/// What is left of the weights behind a layer, [K, C, R, S] or [K, inputs] as before.
Tensor<float> shaped_like(const Shape& before, const KeptChannels& kept) {
  const Shape shape = before.rank() == 2
                          ? Shape{before[0], kept.weights.shape()[1]}
                          : Shape{before[0], static_cast<int64_t>(kept.channels.size()), before[2], before[3]};
  Tensor<float> result(host_memory(), shape, MemoryCategory::data);
  std::copy_n(kept.weights.data(), shape.elements(), result.data());
  return result;
}

}  // namespace

void check_channels(const StateDict& model, const std::map<std::string, int64_t>& counts) {
  const std::vector<std::string> layers = layer_names(network_of(model));
  for (const auto& [name, count] : counts) {
    if (std::ranges::find(layers, name) == layers.end())
      fail<UsageError>("{}: no layer of this name; there are {}", name, fmt::join(layers, ", "));
    if (name == layers.back()) fail<UsageError>("{}: its channels are the classes, and all of them remain", name);
    if (const int64_t channels = model.at(name + ".weight").shape()[0]; count < 1 || count > channels)
      fail<UsageError>("{}={}: the layer has {} channels; keep 1 to {}", name, count, channels, channels);
  }
}

std::vector<PrunedChannels> prune_channels(StateDict& model, const Calibration& calibration,
                                           const std::map<std::string, int64_t>& counts, const OnRemoval& on_removal) {
  check_channels(model, counts);
  const std::vector<std::string> layers = layer_names(network_of(model));
  std::vector<PrunedChannels> pruned;
  std::map<std::string, std::vector<float>> fisher = calibration.fisher;  // of the outputs that remain
  for (size_t i = layers.size() - 1; i-- > 0;) {
    const auto count = counts.find(layers[i]);
    if (count == counts.end()) continue;
    const std::string weight = layers[i] + ".weight", behind = layers[i + 1] + ".weight";
    Tensor<float>& in_front = model.at(weight).values();
    Tensor<float>& bias = model.at(layers[i] + ".bias").values();
    Tensor<float>& consumer = model.at(behind).values();
    const int64_t channels = in_front.shape()[0];
    const KeptChannels kept = keep_channels(consumer.view(), calibration.hessians.at(behind), fisher[behind], channels,
                                            count->second, on_removal);
    consumer = shaped_like(consumer.shape(), kept);
    in_front = rows_of(in_front, kept.channels);
    bias = rows_of(bias, kept.channels);
    fisher[weight] = rows_of(fisher[weight], kept.channels);
    pruned.push_back({layers[i], channels, count->second, kept.error});
  }
  return pruned;
}

}  // namespace nibblenet
