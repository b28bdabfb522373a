#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/json.h"
#include "kernels/backend.h"
#include "layers/network/network_spec.h"
#include "tools/timing/ceilings.h"
#include "tools/timing/sampling.h"

namespace nibblenet::tools {

/// The time of one layer alone, at one batch size. On a GPU with programmatic dependent launch
/// (PDL) a run's weights arrive during the run before: the time is fair for bandwidths, not a
/// latency.
struct LayerTiming {
  std::string name;  ///< PyTorch's, like "features.0"; "features.0+pool" for the pooling behind it
  double bytes = 0;  ///< stored weights, bias, input and output, once each
  double flops = 0;  ///< multiplications and additions that its product makes; 0 for a pooling
  Precision precision = Precision::float32;  ///< of the factors of its product
  Latency warm;
  std::optional<Latency> cold;  ///< nothing when that would take too many copies of the operands
};

/// Times each convolution, pooling and linear layer of a model alone: many runs in a row without a
/// wait, as one recording if the backend records. Warm runs use the same operands. Cold runs cycle
/// through so many copies of the operands that none is in a cache when its turn comes. Throws
/// Stopped on Ctrl-C.
std::vector<LayerTiming> time_layers(Backend& backend, const StateDict& parameters, Precision precision,
                                     int64_t image_size, int64_t batch, double seconds, const std::string& label);

/// What a layer takes at least, in milliseconds: its operations at the measured peak of their type,
/// and its bytes at the measured bandwidth of the memory. Bytes that lie in caches can beat that.
struct LayerBound {
  double products = 0;
  double bytes = 0;

  double ms() const { return std::max(products, bytes); }
  std::string_view by() const { return products >= bytes ? "products" : "bytes"; }
};
/// Where the ceilings have no peak of the type of the factors, float32's counts.
LayerBound bound_of(double bytes, double flops, Precision precision, const Ceilings& ceilings);
LayerBound bound_of(const LayerTiming& timing, const Ceilings& ceilings);

/// A table for people: each layer's times beside its bound, then the sums.
std::string layers_table(const std::vector<LayerTiming>& timings, const Ceilings& ceilings);

/// The times of a layer, and its bound, as bench's JSON holds them.
nlohmann::json to_json(const LayerTiming& timing, const Ceilings& ceilings);

}  // namespace nibblenet::tools
