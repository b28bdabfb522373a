#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"
#include "training/compression/calibration.h"
#include "training/compression/channel_selection.h"

namespace nibblenet {

/// What became of the units (output channels) of one layer.
struct PrunedUnits {
  std::string layer;  ///< its name
  int64_t units = 0;
  int64_t kept = 0;
  double error = 0;  ///< of the next layer's output, relative
};

/// Throws UsageError for a name that is no layer, for the last layer, whose units are the classes, and for counts that
/// do not fit.
void check_units(const StateDict& model, const std::map<std::string, int64_t>& counts);

/// Structured pruning: of each layer in `counts` that many units remain, those that keep_channels() finds in the layer
/// behind it. What is left is a narrower float network. The last layers come first, so that those before them heed only
/// what remains. Throws UsageError as check_units() does.
std::vector<PrunedUnits> prune_units(StateDict& model, const Calibration& calibration,
                                     const std::map<std::string, int64_t>& counts, const OnRemoval& on_removal = {});

}  // namespace nibblenet
