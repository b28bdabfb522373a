#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/common/calibration_options.h"
#include "training/sensitivity.h"

namespace nibblenet::tools {

/// What compensated rounding did to a layer.
struct LayerReport {
  std::string weight;
  Compensation compensation;
};

/// Turns weights into codes as the flags say, on the device where it can, on the host where a calibration or another
/// range than the maximum has a say. Moments are inverted once for all ways to store a weight that follow each other.
class WeightPacker {
 public:
  /// `flags` and `backend` must outlive it.
  WeightPacker(const CalibrationFlags& flags, std::optional<Calibration> calibration, Backend& backend)
      : flags_(flags), calibration_(std::move(calibration)), backend_(backend) {}

  /// A candidate's step, where it has one, takes the place of --range. `on_weights` hears how many of the tensor's
  /// weights are done; `report`, unless null, of compensation. Throws Stopped on Ctrl-C.
  PackedTensor operator()(const Parameter& parameter, const Candidate& candidate,
                          const std::function<void(int64_t)>& on_weights = {}, LayerReport* report = nullptr);

  bool compensates() const { return flags_.compensates(); }
  /// A weight that will not be asked for again: the moments of the largest take 340 MB.
  void forget(const std::string& weight);

 private:
  const InverseFactor& factor_of(const std::string& weight, ColumnOrder order);

  const CalibrationFlags& flags_;
  std::optional<Calibration> calibration_;
  Backend& backend_;
  std::string inverted_;  ///< the weight that factor_ is of
  InverseFactor factor_;
};

/// Prints the table of them, nothing for none, and returns it.
nlohmann::json print_reports(const std::vector<LayerReport>& reports);

}  // namespace nibblenet::tools
