#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"
#include "training/compression/calibration.h"
#include "training/compression/channel_selection.h"

namespace nibblenet {

/// Result of pruning one layer's channels (neurons of a linear layer).
struct PrunedChannels {
  std::string layer;  ///< its name
  int64_t channels = 0;
  int64_t kept = 0;
  double error = 0;  ///< of the next layer's output, relative
};

/// Throws UsageError for a name that is no layer, for the last layer, whose channels are the
/// classes, and for counts that do not fit.
void check_channels(const StateDict& model, const std::map<std::string, int64_t>& counts);

/// Structured pruning: keeps `counts` channels of each layer, those that keep_channels() finds in
/// the layer behind it. The result is a narrower float network. The last layers are pruned first,
/// so that earlier layers consider only the channels that remain. Throws as check_channels().
std::vector<PrunedChannels> prune_channels(StateDict& model, const Calibration& calibration,
                                           const std::map<std::string, int64_t>& counts,
                                           const OnRemoval& on_removal = {});

}  // namespace nibblenet
