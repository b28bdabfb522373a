#include "tools/common/simulation.h"

#include <fmt/format.h>

#include "tools/common/report.h"

namespace nibblenet::tools {
namespace {

void add(SimulationReport& report, SimulatedLayer layer) {
  if (layer.need.distinct > report.total.need.distinct) {
    report.total.need = layer.need;
    report.total.row = layer.row;
  }
  report.total.error += layer.error;
  report.layers.push_back(std::move(layer));
}

std::string table_row(const SimulatedLayer& layer, int claimed) {
  return fmt::format("{:<14} {:>11} {:>8} {:>8} {:>16} {:>12.4g} {:>12.4g} {:>8.2f}\n", layer.name,
                     thousands(layer.error.weights), claimed, layer.need.bits,
                     fmt::format("{} of {}", thousands(layer.need.distinct), thousands(layer.row)), layer.error.mse(),
                     layer.error.mae(), layer.error.snr_db());
}

nlohmann::json layer_json(const SimulatedLayer& layer) {
  return {{"weights", layer.error.weights},         {"row", layer.row},         {"needed_bits", layer.need.bits},
          {"distinct_values", layer.need.distinct}, {"mse", layer.error.mse()}, {"mae", layer.error.mae()},
          {"snr_db", layer.error.snr_db()}};
}

}  // namespace

SimulationReport simulate_weights(StateDict& model, const SimulatedScheme& scheme,
                                  const std::function<void(int64_t done, int64_t total)>& on_progress) {
  if (model.packed()) fail<UsageError>("{} needs a float model; this one is packed", to_string(scheme));
  SimulationReport report{.scheme = scheme, .total = {.name = "total"}};
  const int64_t total = model.weight_count();
  for (Parameter& parameter : model.parameters) {
    if (!parameter.is_weight()) continue;  // biases stay as they are
    const TensorView<const float> weights = parameter.values().view();
    Tensor<float> simulated(host_memory(), weights.shape(), MemoryCategory::data);
    simulate(simulated.view(), weights, scheme, parameter.name);
    if (scheme.simulation == Simulation::dynamic_tree) {
      const ExponentCounts counts = exponent_counts(weights, scheme.bits, parameter.name);
      for (size_t e = 0; e < counts.counts.size(); ++e) report.exponents.counts[e] += counts.counts[e];
    }
    add(report, {parameter.name.substr(0, parameter.name.rfind('.')), weights.shape().sizes().back(),
                 bits_needed(simulated.view()), quantization_error(weights, simulated.view())});
    parameter.value = std::move(simulated);
    if (on_progress) on_progress(report.total.error.weights, total);
  }
  return report;
}

std::string simulation_table(const SimulationReport& report) {
  std::string text = fmt::format("{:<14} {:>11} {:>8} {:>8} {:>16} {:>12} {:>12} {:>8}\n", "layer", "weights",
                                 "claimed", "needed", "values of a row", "MSE", "MAE", "SNR dB");
  for (const SimulatedLayer& layer : report.layers) text += table_row(layer, report.scheme.bits);
  text += table_row(report.total, report.scheme.bits);
  text += fmt::format(
      "simulated: {} claims {} bits a weight; the values of a row need {}. These are float32 weights, rounded: they "
      "have no size of their own\n",
      to_string(report.scheme), report.scheme.bits, report.total.need.bits);
  if (report.scheme.simulation != Simulation::dynamic_tree) return text;
  text += "exponent counts:";
  for (int e = 0; e < report.scheme.bits; ++e) {
    const int64_t count = report.exponents.counts[static_cast<size_t>(e)];
    text += fmt::format(" {}: {} ({:.2f} %)", e, thousands(count),
                        100.0 * static_cast<double>(count) / static_cast<double>(report.total.error.weights));
  }
  return text + "\n";
}

nlohmann::json simulation_json(const SimulationReport& report) {
  nlohmann::json json = layer_json(report.total);
  json["scheme"] = to_string(report.scheme);
  json["claimed_bits"] = report.scheme.bits;
  json["repairs"] = nlohmann::json::array();
  for (const LinearRepairTraits& repair : linear_repair_table())
    if (report.scheme.repairs.*repair.flag) json["repairs"].push_back(repair.name);
  for (const SimulatedLayer& layer : report.layers) {
    nlohmann::json row = layer_json(layer);
    row["name"] = layer.name;
    json["layers"].push_back(std::move(row));
  }
  if (report.scheme.simulation == Simulation::dynamic_tree) json["exponent_counts"] = report.exponents.counts;
  return json;
}

}  // namespace nibblenet::tools
