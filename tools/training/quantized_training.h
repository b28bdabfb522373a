#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "layers/network/network_spec.h"
#include "training/compression/pruning.h"
#include "training/trained_parameters.h"

namespace nibblenet::tools {

/// The start of a training: the network's float weights, and the packed model that training in
/// packed form takes scales, codebooks and frozen layers from (else empty).
struct TrainingStart {
  StateDict parameters;
  StateDict packed;
};

/// --quantize and --layer: training in packed form.
struct QuantizedTrainingFlags {
  std::string scheme;               ///< --quantize: a scheme, or "packed"; empty: training in float32
  std::vector<std::string> layers;  ///< --layer, each PATTERN=SCHEME

  /// Adds the flags to a program.
  void add_to(CLI::App& app);
  bool given() const { return !scheme.empty(); }
  /// Throws UsageError for schemes that cannot be parsed. Needs no model.
  void validate() const;
  /// The start of a training from `initial`, which may be packed, whole or in part. A packed weight
  /// stays when its layer is frozen, or when it has the requested scheme; every other weight is
  /// packed from its values. Throws UsageError for schemes that cannot be trained as `learned`
  /// says, and for `--quantize packed` when a weight is not packed.
  TrainingStart start_from(StateDict initial, bool freeze_features, Learned learned, Backend& backend) const;
};

/// --prune, --prune-scope, --prune-layer and --prune-until: pruning of single weights.
struct PruningFlags {
  double fraction = 0;              ///< of each trained layer's weights, in [0, 1)
  std::string scope = "layer";      ///< "layer" or "global"
  std::vector<std::string> layers;  ///< --prune-layer, each PATTERN=FRACTION
  double until = 0.6;               ///< part of the training after which the fraction is reached

  /// Adds the flags to a program.
  void add_to(CLI::App& app);
  /// The options but for PruningOptions::layers. `enabled`: whether --prune was given. Throws
  /// UsageError for --prune-layer without --prune.
  PruningOptions options(bool enabled) const;
  /// PruningOptions::layers of a run that trains all layers, or the classifier alone. Throws
  /// UsageError for patterns that name no trained layer.
  std::map<std::string, double> fractions(const NetworkSpec& network, bool freeze_features) const;
};

}  // namespace nibblenet::tools
