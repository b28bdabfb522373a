#pragma once

#include <string>
#include <vector>

#include "engine/io/json.h"
#include "tools/timing/forward.h"
#include "tools/timing/layers.h"

namespace nibblenet::tools {

/// The time of the first layers of a pass, by the device's clock. What a prefix takes longer than
/// the one before is what its last kernels cost where kernels overlap: a profiler, which runs them
/// one after the other, cannot show it.
struct PrefixTiming {
  std::string name;                          ///< of what this prefix adds, as in LayerTiming: "features.3+pool"
  int64_t operations = 0;                    ///< in this prefix
  Latency time;                              ///< of this prefix
  double marginal = 0;                       ///< ms more than the prefix before, by the medians
  double bytes = 0;                          ///< of what it adds: weights, bias, input and output, once each
  double flops = 0;                          ///< of what it adds
  Precision precision = Precision::float32;  ///< of the factors of its product
};

/// Times every prefix of a pass that has one operation more than the prefix before, each for
/// `seconds`. The kernels are those of the whole pass. Empty where the backend does not record.
/// Requires T224. Throws Stopped on Ctrl-C.
std::vector<PrefixTiming> time_prefixes(TimedForward& forward, double seconds, const std::string& label);

/// A table for people: the time of each prefix, what it adds, and the bound of that.
std::string prefixes_table(const std::vector<PrefixTiming>& timings, const Ceilings& ceilings);

/// The times of a prefix, and the bound of what it adds, as bench's JSON holds them.
nlohmann::json to_json(const PrefixTiming& timing, const Ceilings& ceilings);

}  // namespace nibblenet::tools
