#include "layers/network/precision_choice.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "engine/quant/byte_values.h"
#include "layers/network/input_range.h"

namespace nibblenet {
namespace {

constexpr std::string_view images_key = "images";

std::string key_of(std::string_view name) { return std::string(divergence_key) + std::string(name); }

/// The whole text as a number; nothing where it is none.
template <class T>
std::optional<T> number_in(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// Three digits that count, without an exponent: "0.000123".
std::string decimal(double value) {
  if (!(value > 0)) return "0";
  constexpr int digits = 3, most = 18;
  const int leading = static_cast<int>(std::floor(std::log10(value)));
  return fmt::format("{:.{}f}", value, std::clamp(digits - 1 - leading, 0, most));
}

std::string cost_line(Precision precision, const std::optional<PrecisionDivergence>& divergence) {
  if (!divergence)
    return fmt::format("{}: its divergence from float32 was not measured; pack --calibrate measures it",
                       to_string(precision));
  return fmt::format("{}: divergence {} from float32 on {} training images", to_string(precision),
                     decimal(divergence->nats), divergence->images);
}

/// Why `auto` does not take this precision; empty where it does.
std::string objection(Precision precision, const std::optional<PrecisionDivergence>& divergence,
                      const Backend& backend) {
  if (divergence->nats > most_divergence)
    return fmt::format("{} was passed over: its divergence {} is above {}", to_string(precision),
                       decimal(divergence->nats), most_divergence);
  if (!backend.has_fast(precision))
    return fmt::format("{} was passed over: this processor has no instructions for it", to_string(precision));
  return {};
}

/// Divergences are those of packed weights: float models, those of tools/export included, have
/// none.
void choose_fastest(PrecisionChoice& choice, const Backend& backend, const StateDict& model) {
  choice.precision = backend.preferred_precision();
  if (choice.precision != Precision::float32 || !model.packed()) return;
  for (const Precision precision : {Precision::int8, Precision::bfloat16}) {
    const auto divergence = divergence_of(model.metadata, precision);
    if (!divergence) continue;
    if (std::string why = objection(precision, divergence, backend); !why.empty()) {
      choice.passed_over.push_back(std::move(why));
      continue;
    }
    choice.precision = precision;
    return;
  }
}

std::string layer_of(const Parameter& weight) { return weight.name.substr(0, weight.name.rfind('.')); }

bool lacks_ranges(const StateDict& model) {
  return std::ranges::any_of(model.parameters, [&](const Parameter& parameter) {
    return parameter.packed() && input_range(model.metadata, layer_of(parameter), true).largest == 0;
  });
}

/// In a few words; empty where it can.
std::string why_not_int8(const Parameter& weight) {
  if (!weight.packed()) return "its weights are not packed";
  const Codebook codebook = codebook_of(weight.packed_values());
  return why_not_bytes(view_of(weight.packed_values(), codebook));
}

/// Whether a layer's products in int8 are filtered if its inputs have 127 steps.
bool may_filter(const LayerSpec& layer, const StateDict& model) {
  if (layer.kind != LayerKind::conv2d || layer.window.stride != 1) return false;
  const Parameter& weight = model.at(layer.name + ".weight");
  if (!weight.packed() || !may_sum_columns(layer.weight) || !why_not_int8(weight).empty()) return false;
  const Codebook codebook = codebook_of(weight.packed_values());
  const PackedView view = view_of(weight.packed_values(), codebook);
  return are_summands(view, byte_values(view));
}

std::map<std::string, std::string> layers_without_int8(const StateDict& model) {
  std::map<std::string, std::string> reasons;
  for (const Parameter& parameter : model.parameters)
    if (parameter.is_weight())
      if (std::string why = why_not_int8(parameter); !why.empty()) reasons[layer_of(parameter)] = std::move(why);
  return reasons;
}

}  // namespace

std::optional<PrecisionDivergence> divergence_of(const std::map<std::string, std::string>& metadata,
                                                 Precision precision) {
  const auto entry = metadata.find(key_of(to_string(precision)));
  if (entry == metadata.end()) return std::nullopt;
  const std::optional<double> nats = number_in<double>(entry->second);
  if (!nats || !std::isfinite(*nats) || *nats < 0)
    fail<FormatError>("metadata {}: '{}' is no number of at least 0", entry->first, entry->second);
  const auto count = metadata.find(key_of(images_key));
  const std::optional<int64_t> images = count == metadata.end() ? std::nullopt : number_in<int64_t>(count->second);
  if (!images || *images < 1)
    fail<FormatError>("metadata {}: '{}' is no number of images", key_of(images_key),
                      count == metadata.end() ? "" : count->second);
  return PrecisionDivergence{*nats, *images};
}

void set_divergence(std::map<std::string, std::string>& metadata, Precision precision,
                    const PrecisionDivergence& divergence) {
  metadata[key_of(to_string(precision))] = decimal(divergence.nats);
  metadata[key_of(images_key)] = std::to_string(divergence.images);
}

void forget_precisions(std::map<std::string, std::string>& metadata) {
  std::erase_if(metadata, [](const auto& item) {
    return std::ranges::any_of(std::array{divergence_key, input_range_key, input_steps_key},
                               [&](std::string_view key) { return item.first.starts_with(key); });
  });
}

void halve_input_steps(StateDict& model) {
  bool behind_relu = false;
  for (const LayerSpec& layer : layers_of(model)) {
    if (!layer.has_parameters()) continue;
    if (behind_relu && input_range(model.metadata, layer.name, true).largest > 0 && may_filter(layer, model))
      set_input_steps(model.metadata, layer.name, largest_byte);
    behind_relu = layer.epilogue == Epilogue::relu;
  }
}

bool restore_input_steps(std::map<std::string, std::string>& metadata) {
  return std::erase_if(metadata, [](const auto& item) { return item.first.starts_with(input_steps_key); }) > 0;
}

PrecisionChoice choose_precision(std::string_view asked, const Backend& backend, const StateDict& model) {
  PrecisionChoice choice;
  if (asked.empty()) {
    choice.precision = backend.preferred_precision();
  } else if (asked == "auto") {
    choose_fastest(choice, backend, model);
  } else {
    choice.precision = parse_precision(asked);
    choice.demanded = true;
  }
  backend.expect_support(choice.precision);
  if (storage_of(choice.precision) != choice.precision && model.packed())
    choice.divergence = divergence_of(model.metadata, choice.precision);
  if (choice.precision == Precision::int8) {
    choice.lacks_ranges = lacks_ranges(model);
    if (choice.demanded) choice.not_int8 = layers_without_int8(model);
  }
  return choice;
}

Precision precision_of(const Network& network, const Layer& layer) {
  return layer.weight ? layer.weight->product_precision().value_or(network.storage()) : network.storage();
}

void expect_demanded(const PrecisionChoice& choice, const Network& network) {
  if (!choice.demanded || choice.precision != Precision::int8) return;
  std::vector<std::string> others;
  for (const Layer& layer : network.layers()) {
    if (!layer.weight || precision_of(network, layer) == Precision::int8) continue;
    const auto why = choice.not_int8.find(layer.spec.name);
    others.push_back(fmt::format("{} ({})", layer.spec.name,
                                 why != choice.not_int8.end() ? why->second : "this device has no int8 for it"));
  }
  if (!others.empty())
    fail<UsageError>(
        "--precision int8: these layers cannot compute in it: {}; --precision auto takes what each can, and pack "
        "--granularity channel packs so that all can",
        fmt::join(others, ", "));
}

std::vector<std::string> precision_lines(const PrecisionChoice& choice, const Network& network) {
  std::vector<std::string> lines = choice.passed_over;
  if (storage_of(choice.precision) == choice.precision) return lines;
  lines.push_back(cost_line(choice.precision, choice.divergence));
  std::vector<std::string> others;
  for (const Layer& layer : network.layers())
    if (const Precision its = precision_of(network, layer); layer.spec.has_parameters() && its != choice.precision)
      others.push_back(fmt::format("{} ({})", layer.spec.name, to_string(its)));
  if (!others.empty())
    lines.push_back(fmt::format("{}: other precisions in {}", to_string(choice.precision), fmt::join(others, ", ")));
  if (choice.lacks_ranges)
    lines.push_back(
        "int8: the file has no input ranges, so each image's own largest inputs are its scales; pack --calibrate "
        "stores ranges");
  return lines;
}

}  // namespace nibblenet
