#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"
#include "training/compression/calibration.h"
#include "training/compression/channel_selection.h"

namespace nibblenet {

/// What became of the channels (neurons, of a linear layer) of one layer.
struct PrunedChannels {
  std::string layer;  ///< its name
  int64_t channels = 0;
  int64_t kept = 0;
  double error = 0;  ///< of the next layer's output, relative
};

/// Throws UsageError for a name that is no layer, for the last layer, whose channels are the
/// classes, and for counts that do not fit.
void check_channels(const StateDict& model, const std::map<std::string, int64_t>& counts);

/// Structured pruning: of each layer in `counts` that many channels remain, those that
/// keep_channels() finds in the layer behind it. What is left is a narrower float network. The last
/// layers come first, so that those before them heed only what remains. Throws UsageError as
/// check_channels() does.
std::vector<PrunedChannels> prune_channels(StateDict& model, const Calibration& calibration,
                                           const std::map<std::string, int64_t>& counts,
                                           const OnRemoval& on_removal = {});

}  // namespace nibblenet
