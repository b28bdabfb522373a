#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "engine/io/state_dict.h"
#include "engine/quant/error.h"
#include "engine/quant/simulate.h"

namespace nibblenet::tools {

/// A simulation's effect on the weights of one layer, or of all layers.
struct SimulatedLayer {
  std::string name;  ///< "features.0"
  int64_t row = 0;   ///< length of `need`'s row: a short row cannot hold many different values
  ValueNeed need;    ///< most different values in a row of the layer, or of any layer
  QuantizationError error;
};

/// A simulation's effect on a network.
struct SimulationReport {
  SimulatedScheme scheme;
  std::vector<SimulatedLayer> layers;
  SimulatedLayer total;
  ExponentCounts exponents;  ///< dynamic tree only: the notebooks' "exponent counts" of the whole network
};

/// Replaces every weight of a float model by its value in the notebooks' simulation; biases stay.
/// `on_progress` hears how many weights are done, and their total. Throws UsageError for a packed
/// model.
SimulationReport simulate_weights(StateDict& model, const SimulatedScheme& scheme,
                                  const std::function<void(int64_t done, int64_t total)>& on_progress = {});

/// A table of each layer and the total: claimed bits, bits that the values need, errors; below it
/// the exponent counts.
std::string simulation_table(const SimulationReport& report);
/// "simulation" in eval's JSON.
nlohmann::json simulation_json(const SimulationReport& report);

}  // namespace nibblenet::tools
