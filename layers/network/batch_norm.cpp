#include "layers/network/batch_norm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "layers/network/network_spec.h"

namespace nibblenet {
namespace {

constexpr double epsilon = 1e-5;

constexpr std::array<const char*, 4> norm_parts = {".weight", ".bias", ".running_mean", ".running_var"};

/// A part of a batch norm, one number a channel: γ, β, μ or σ².
const Parameter& part(const StateDict& parameters, std::string_view norm, const char* name, int64_t channels) {
  const Parameter& found = parameters.at(std::string(norm) + name);
  if (found.shape() != Shape{channels})
    fail<FormatError>("{} has shape {}, expected {}", found.name, to_string(found.shape()), channels);
  return found;
}

void fold(StateDict& parameters, const LayerRow& row) {
  const std::string layer(row.normalised.layer), norm(row.normalised.norm);
  Parameter& weight = parameters.at(layer + ".weight");
  Parameter& bias = parameters.at(layer + ".bias");
  const int64_t channels = bias.shape().elements();
  if (weight.shape().rank() != 4 || bias.shape() != Shape{weight.shape()[0]})
    fail<FormatError>("{}: weight {} and bias {} do not fit", layer, to_string(weight.shape()),
                      to_string(bias.shape()));
  std::array<const float*, 4> parts{};
  for (size_t i = 0; i < parts.size(); ++i) {
    const Parameter& each = part(parameters, norm, norm_parts[i], channels);
    parts[i] = each.values().data();
    bias.file_bytes += each.file_bytes;
  }
  const auto [gamma, beta, mean, variance] = parts;
  const int64_t length = weight.shape().inner_elements();
  float* w = weight.values().data();
  for (int64_t k = 0; k < channels; ++k) {
    const auto sigma2 = static_cast<double>(variance[k]);
    if (!(sigma2 >= 0)) fail<FormatError>("{}.running_var[{}] is {}: no variance", norm, k, sigma2);
    const double factor = static_cast<double>(gamma[k]) / std::sqrt(sigma2 + epsilon);
    for (int64_t i = 0; i < length; ++i)
      w[k * length + i] = static_cast<float>(factor * static_cast<double>(w[k * length + i]));
    float& b = bias.values().data()[k];
    b = static_cast<float>((static_cast<double>(b) - static_cast<double>(mean[k])) * factor +
                           static_cast<double>(beta[k]));
  }
}

}  // namespace

int fold_batch_norms(StateDict& parameters) {
  const auto normalised = [&](const LayerRow& row) {
    return !row.normalised.norm.empty() &&
           parameters.find(std::string(row.normalised.norm) + ".running_var") != nullptr;
  };
  const auto network = std::ranges::find_if(
      networks(), [&](const NetworkSpec& each) { return std::ranges::any_of(each.layers, normalised); });
  if (network == networks().end()) return 0;
  std::map<std::string, std::string> renamed;
  std::set<std::string> consumed;
  int folded = 0;
  for (const LayerRow& row : network->layers) {
    if (row.normalised.norm.empty()) continue;
    fold(parameters, row);
    ++folded;
    for (const char* each : {".weight", ".bias"})
      renamed[std::string(row.normalised.layer) + each] = std::string(row.name) + each;
    for (const char* each : norm_parts) consumed.insert(std::string(row.normalised.norm) + each);
  }
  std::erase_if(parameters.parameters, [&](const Parameter& each) { return consumed.contains(each.name); });
  for (Parameter& parameter : parameters.parameters)  // all at once: a new name is another layer's old one
    if (const auto found = renamed.find(parameter.name); found != renamed.end()) parameter.name = found->second;
  return folded;
}

}  // namespace nibblenet
