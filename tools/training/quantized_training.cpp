#include "tools/training/quantized_training.h"

#include "engine/quant/text.h"
#include "tools/common/command_line.h"
#include "tools/training/scheme_options.h"
#include "training/compression/quantized_weight.h"

namespace nibblenet::tools {
namespace {

constexpr std::string_view as_packed = "packed";

/// The scheme that the flags request for a weight. Throws UsageError for `--quantize packed` when
/// the weight is not packed and --layer does not name it.
Scheme asked_scheme(const QuantizedTrainingFlags& flags, SchemeChoice& choice, const Parameter& weight) {
  if (flags.scheme != as_packed) return choice(weight);
  if (choice.overridden(weight.name)) return choice(weight);
  if (!weight.packed())
    fail<UsageError>("--quantize packed: {} is not packed; name a scheme, like --quantize kmeans:2:channel",
                     weight.name);
  return weight.packed_values().scheme;
}

}  // namespace

void QuantizedTrainingFlags::add_to(CLI::App& app) {
  app.add_option(
         "--quantize", scheme,
         "Train in packed form: METHOD[:BITS][:GRANULARITY][:f16][:signed] (pack has the list; not sorted, no "
         "zero-point), or packed: the schemes, scales and codebooks of a packed --init. Learns weights, scales, "
         "and kmeans' values; writes a packed model")
      ->type_name("SPEC");
  app.add_option("--layer", layers,
                 "With --quantize: another scheme for the layers a pattern names, PATTERN=SPEC; repeatable, the last "
                 "match counts")
      ->allow_extra_args(false)
      ->type_name("SPEC");
}

void QuantizedTrainingFlags::validate() const {
  if (!given() && !layers.empty()) throw UsageError("--layer needs --quantize");
  if (!given()) return;
  if (scheme != as_packed) parse_scheme(scheme);
  SchemeChoice::check({.layers = layers});
}

TrainingStart QuantizedTrainingFlags::start_from(StateDict initial, bool freeze_features, Learned learned,
                                                 Backend& backend) const {
  if (!given()) return {.parameters = std::move(initial), .packed = {}};
  const NetworkSpec& network = network_of(initial);
  SchemeChoice choice(scheme == as_packed ? Scheme{} : parse_scheme(scheme), layers, initial);
  const std::vector<std::string> features = feature_names(network);
  const auto is_frozen = [&](const Parameter& weight) {
    return freeze_features &&
           std::ranges::any_of(features, [&](const std::string& name) { return weight.name == name + ".weight"; });
  };
  for (const Parameter& parameter : initial.parameters) {
    if (!parameter.is_weight()) continue;
    const Scheme asked = asked_scheme(*this, choice, parameter);
    if (!is_frozen(parameter)) expect_trainable(asked, parameter.name, learned == Learned::scales);
  }
  choice.expect_all_used();
  TrainingStart start{.parameters = dequantized(initial), .packed = {}};
  for (Parameter& parameter : initial.parameters) {
    if (!parameter.is_weight() || (is_frozen(parameter) && parameter.packed())) continue;
    const Scheme asked = asked_scheme(*this, choice, parameter);
    if (parameter.packed() && parameter.packed_values().scheme == asked) continue;
    parameter.value =
        backend.quantize(std::as_const(start.parameters).at(parameter.name).values().view(), asked, parameter.name);
  }
  start.packed = std::move(initial);
  return start;
}

void PruningFlags::add_to(CLI::App& app) {
  app.add_option("--prune", fraction,
                 "Make this part of each trained layer's weights 0, the smallest first, on a cubic ramp; they stay 0. "
                 "Weights that are 0 at the start stay 0 too: 0 only keeps them")
      ->type_name("FRACTION");
  add_checked(app, "--prune-scope", scope, CLI::IsMember({"layer", "global"}),
              "layer: each layer to the fraction; global: one threshold for all of them");
  app.add_option("--prune-layer", layers,
                 "Another fraction for each layer that a pattern names, PATTERN=FRACTION; repeatable, the last match "
                 "counts")
      ->allow_extra_args(false)
      ->type_name("SPEC");
  app.add_option("--prune-until", until, "Part of the training over which pruning goes on")->capture_default_str();
}

PruningOptions PruningFlags::options(bool enabled) const {
  if (!enabled && !layers.empty()) throw UsageError("--prune-layer needs --prune");
  return {.enabled = enabled, .fraction = fraction, .global = scope == "global", .until = until};
}

std::map<std::string, double> PruningFlags::fractions(const NetworkSpec& network, bool freeze_features) const {
  std::map<std::string, double> fractions;
  for (const std::string& text : layers) {
    const size_t equals = text.rfind('=');
    const std::optional<double> value =
        equals == std::string::npos || equals == 0 ? std::nullopt : parse_number<double>(text.substr(equals + 1));
    if (!value) fail<UsageError>("--prune-layer {}: expected PATTERN=FRACTION, like '*=0.5'", text);
    const std::string pattern = text.substr(0, equals);
    bool used = false;
    const auto add = [&](const std::string& layer) {
      if (!matches_layer(pattern, layer + ".weight")) return;
      fractions[layer] = *value;
      used = true;
    };
    std::ranges::for_each(freeze_features ? classifier_names(network) : layer_names(network), add);
    if (!used) fail<UsageError>("--prune-layer {}=…: no layer of this name is trained", pattern);
  }
  return fractions;
}

}  // namespace nibblenet::tools
