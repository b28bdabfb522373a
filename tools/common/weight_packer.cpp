#include "tools/common/weight_packer.h"

#include <fmt/core.h>

#include "tools/common/command_line.h"

namespace nibblenet::tools {

PackedTensor WeightPacker::operator()(const Parameter& parameter, const Candidate& candidate,
                                      const std::function<void(int64_t)>& on_weights, LayerReport* report) {
  const TensorView<const float> weights = parameter.values().view();
  QuantizeOptions options = flags_.quantize_options(parameter.name);
  if (candidate.step > 0) {
    options.range = Range::step;
    options.deviations = candidate.step;
  }
  if (!calibration_ && options.range == Range::max) return backend_.quantize(weights, candidate.scheme, parameter.name);
  LayerReport own;
  LayerReport& heard = report != nullptr ? *report : own;
  heard.weight = parameter.name;
  options.report = &heard.compensation;
  if (calibration_) options.moments = &calibration_->moments.at(parameter.name);
  if (compensates()) options.factor = &factor_of(parameter.name, options.order);
  options.on_columns = [&](int64_t columns, int64_t of) {
    if (interrupted()) throw Stopped("stopped; nothing was written");
    if (on_weights) on_weights(weights.elements() / of * columns);
  };
  return quantize(weights, candidate.scheme, parameter.name, options);
}

void WeightPacker::forget(const std::string& weight) {
  if (calibration_) calibration_->moments.erase(weight);
  if (inverted_ == weight) factor_ = {};
}

const InverseFactor& WeightPacker::factor_of(const std::string& weight, ColumnOrder order) {
  if (inverted_ == weight) return factor_;
  factor_ = {};  // before the next one is made: the largest takes 340 MB
  inverted_.clear();
  factor_ = invert(calibration_->moments.at(weight), order);
  inverted_ = weight;
  return factor_;
}

nlohmann::json print_reports(const std::vector<LayerReport>& reports) {
  nlohmann::json layers = nlohmann::json::array();
  if (!reports.empty())
    fmt::print("{:<20} {:>12} {:>12} {:>8} {:>11} {:>8} {:>10} {:>12}\n", "output error", "nearest", "compensated",
               "ratio", "coded bits", "damping", "rows kept", "dead inputs");
  for (const auto& [weight, done] : reports) {
    fmt::print("{:<20} {:>12.5g} {:>12.5g} {:>8.3f} {:>11.3f} {:>8.2g} {:>10} {:>12}\n", weight, done.nearest_error,
               done.error, done.nearest_error > 0 ? done.error / done.nearest_error : 1.0, done.bits, done.damping,
               done.rows_kept, done.dead_inputs);
    layers.push_back({{"weight", weight},
                      {"nearest_error", done.nearest_error},
                      {"error", done.error},
                      {"coded_bits", done.bits},
                      {"damping", done.damping},
                      {"rows_kept", done.rows_kept},
                      {"dead_inputs", done.dead_inputs}});
  }
  return layers;
}

}  // namespace nibblenet::tools
