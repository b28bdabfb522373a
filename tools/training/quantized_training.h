#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "layers/network/network_spec.h"
#include "training/compression/pruning.h"

namespace nibblenet::tools {

/// Start of a training: the network's float weights and, for training in packed form, the packed
/// model whose scales, codebooks and frozen layers it takes (else empty).
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
  /// Before any work. Throws UsageError for schemes that cannot be read.
  void validate() const;
  /// `initial` may be packed, whole or in part. A packed weight stays as it is when its layer is
  /// frozen or when its scheme is what was asked for; every other weight is packed anew from its
  /// values. Throws UsageError for schemes that cannot be trained, and for `packed` where a weight
  /// is not.
  TrainingStart start_from(StateDict initial, bool freeze_features, Backend& backend) const;
};

/// --prune and what belongs to it.
struct PruningFlags {
  double fraction = 0;
  std::string scope = "layer";
  std::vector<std::string> layers;  ///< --prune-layer, each PATTERN=FRACTION
  double until = 0.6;

  /// Adds the flags to a program.
  void add_to(CLI::App& app);
  /// Options without `layers`. Throws UsageError for --prune-layer without --prune.
  PruningOptions options(bool enabled) const;
  /// PruningOptions::layers, of a run that trains the features too, or the classifier alone. Throws
  /// UsageError for patterns that name no trained layer.
  std::map<std::string, double> fractions(const NetworkSpec& network, bool freeze_features) const;
};

}  // namespace nibblenet::tools
