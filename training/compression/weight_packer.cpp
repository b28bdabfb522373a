#include "training/compression/weight_packer.h"

namespace nibblenet {

PackedTensor WeightPacker::pack(const Parameter& parameter, const Candidate& candidate,
                                const std::function<void(int64_t)>& on_weights, LayerReport* report, bool with_passes) {
  const TensorView<const float> weights = parameter.values().view();
  QuantizeOptions options = options_of_(parameter.name, candidate.step);
  if (!with_passes) options.passes = 0;
  if (candidate.scheme.is_trellis()) options.rate_weight = 0;  // all its strings take the same bits
  if (calibration_ == nullptr && options.range == Range::max)
    return backend_.quantize(weights, candidate.scheme, parameter.name);
  std::vector<float> fisher;
  if (calibration_ != nullptr) {
    options.hessian = &calibration_->hessians.at(parameter.name);
    fisher = relative_fisher(fisher_of(*calibration_, parameter.name), weights.size(0));
    options.fisher = fisher;
  }
  if (options.rounding == Rounding::gptq) {
    options.factor = &factor_of(parameter.name, options.order);
    if (report != nullptr) {
      report->weight = parameter.name;
      options.report = &report->gptq;
    }
  }
  options.on_columns = [&](int64_t columns, int64_t of) { on_weights(weights.elements() / of * columns); };
  return quantize(weights, candidate.scheme, parameter.name, options);
}

const HessianFactor& WeightPacker::factor_of(const std::string& weight, ColumnOrder order) {
  if (factored_ == weight) return factor_;
  factor_ = {};  // before the next one is made: the largest takes 340 MB
  factored_.clear();
  factor_ = factorize(calibration_->hessians.at(weight), order);
  factored_ = weight;
  return factor_;
}

std::vector<LayerReport> pack_weights(StateDict& dict, const std::function<Scheme(const Parameter&)>& scheme_of,
                                      WeightPacker& packer, const OnPacking& on_packing,
                                      const std::function<void(const std::string& weight)>& on_packed) {
  int64_t total = 0, done = 0;
  for (const Parameter& parameter : dict.parameters)
    if (parameter.is_weight() && !parameter.packed()) total += parameter.shape().elements();
  std::vector<LayerReport> reports;
  for (Parameter& parameter : dict.parameters) {
    if (!parameter.is_weight() || parameter.packed()) continue;
    const auto show = [&](int64_t weights) { on_packing(done + weights, total, parameter.name); };
    show(0);
    const int64_t count = parameter.shape().elements();
    LayerReport report;
    parameter.value = packer(parameter, {scheme_of(parameter)}, show, &report);
    if (!report.weight.empty()) reports.push_back(std::move(report));
    if (on_packed) on_packed(parameter.name);
    done += count;
    show(0);
  }
  return reports;
}

}  // namespace nibblenet
