#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/quant/quantizer.h"
#include "training/compression/calibration.h"
#include "training/compression/sensitivity.h"

namespace nibblenet {

/// How a weight's codes are chosen when its groups' scales are `step` root mean squares (0: as the
/// range says). The packer adds the Hessian, the Fisher diagonal and the callbacks.
using QuantizeOptionsOf = std::function<QuantizeOptions(const std::string& weight, float step)>;

/// What GPTQ did to a layer.
struct LayerReport {
  std::string weight;
  GptqReport gptq;
};

/// Turns weights into codes: on the device where it can, on the host where a calibration or another
/// range than the maximum has a say. Keeps the inverse of the last Hessian for all ways to store a
/// weight that follow each other.
class WeightPacker {
 public:
  /// `calibration` may be null. It and the backend must outlive this.
  WeightPacker(QuantizeOptionsOf options_of, const Calibration* calibration, Backend& backend)
      : options_of_(std::move(options_of)), calibration_(calibration), backend_(backend) {}

  /// `on_weights` hears how many of the tensor's weights are done, and throws to stop. Where GPTQ
  /// chose the codes, `report` is filled unless it is null.
  PackedTensor operator()(const Parameter& parameter, const Candidate& candidate,
                          const std::function<void(int64_t)>& on_weights, LayerReport* report = nullptr) {
    return pack(parameter, candidate, on_weights, report, true);
  }
  /// The same, without coordinate-descent passes: a draft to measure, in less time.
  PackedTensor without_passes(const Parameter& parameter, const Candidate& candidate,
                              const std::function<void(int64_t)>& on_weights) {
    return pack(parameter, candidate, on_weights, nullptr, false);
  }
  int64_t calibration_images() const { return calibration_ != nullptr ? calibration_->images : 0; }

 private:
  PackedTensor pack(const Parameter& parameter, const Candidate& candidate,
                    const std::function<void(int64_t)>& on_weights, LayerReport* report, bool with_passes);
  const HessianFactor& factor_of(const Parameter& weight, const Scheme& scheme, ColumnOrder order);

  QuantizeOptionsOf options_of_;
  const Calibration* calibration_;
  Backend& backend_;
  std::pair<std::string, int64_t> factored_;  ///< the weight that factor_ is of, and Scheme::rotated
  HessianFactor factor_;
};

/// Hears of the weights done so far, of how many, and of the tensor at work; throws to stop.
using OnPacking = std::function<void(int64_t done, int64_t total, const std::string& weight)>;

/// Packs every weight of `dict` in place that is not packed yet, by the scheme that `scheme_of`
/// gives it; biases stay as they are. `on_packed`, unless empty, hears of a tensor that will not be
/// asked for again. With `ranks`, each packs the weights that it owns, and all get all of them.
std::vector<LayerReport> pack_weights(StateDict& dict, const std::function<Scheme(const Parameter&)>& scheme_of,
                                      WeightPacker& packer, const OnPacking& on_packing,
                                      const std::function<void(const std::string& weight)>& on_packed = {},
                                      Ranks* ranks = nullptr, const WeightOwners& owners = {});

}  // namespace nibblenet
