#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/backend.h"
#include "layers/network/network_spec.h"
#include "tools/timing/sampling.h"

namespace nibblenet::tools {

/// One layer by itself, at one batch size.
struct LayerTiming {
  std::string name;  ///< PyTorch's; of the pooling behind it, the same with "+pool"
  double bytes = 0;  ///< weights as they are stored, bias, input and output, once each
  double flops = 0;
  Latency warm;
  std::optional<Latency> cold;  ///< nothing where there was no memory for enough copies
};

/// Convolutions, pools and linear layers of a model, each alone, many times in a row with nothing
/// waited for in between, as one recording where the backend makes any. Warm: the same operands.
/// Cold: operands in turn from so many copies that none is in a cache when its turn comes. Throws
/// Stopped on Ctrl-C.
std::vector<LayerTiming> time_layers(Backend& backend, const StateDict& parameters, Precision precision,
                                     int64_t image_size, int64_t batch, double seconds, const std::string& label);

/// A layer's times in bench's JSON.
nlohmann::json to_json(const LayerTiming& timing);

}  // namespace nibblenet::tools
