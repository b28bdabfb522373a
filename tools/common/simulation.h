#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"
#include "engine/quant/error.h"
#include "engine/quant/simulate.h"

namespace nibblenet::tools {

/// A simulation's effect on one layer's weights, or on all.
struct SimulatedLayer {
  std::string name;  ///< "features.0"
  int64_t row = 0;   ///< weights in a row: a short one cannot show many values
  ValueNeed need;    ///< of all: the largest, and its layer's row
  QuantizationError error;
};

/// A simulation's effect on a layer.
struct SimulationReport {
  SimulatedScheme scheme;
  std::vector<SimulatedLayer> layers;
  SimulatedLayer total;
  ExponentCounts exponents;  ///< dynamic tree only: the notebooks' "exponent counts" of the whole network
};

/// Replaces every weight of a float model by the notebooks' version of it; biases stay. Calls back
/// with the weights done and their total. Throws UsageError for a model that is packed.
SimulationReport simulate_weights(StateDict& model, const SimulatedScheme& scheme,
                                  const std::function<void(int64_t done, int64_t total)>& on_progress = {});

/// Claimed bits beside the bits that the values need, errors per layer and in all, and exponent
/// counts.
std::string simulation_table(const SimulationReport& report);
/// The "simulation" object of eval's JSON.
nlohmann::json simulation_json(const SimulationReport& report);

}  // namespace nibblenet::tools
