#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "engine/quant/quantizer.h"
#include "training/calibration.h"

namespace nibblenet::tools {

/// How codes and ranges are chosen, and the calibration that compensated rounding needs.
struct CalibrationFlags {
  std::string data;  ///< --calibrate
  int64_t images = 2000;
  uint64_t seed = 1;
  std::string load;  ///< --calibration
  std::string save;
  std::string rounding;  ///< compensated with a calibration, nearest without, unless given
  std::string range;     ///< search with a calibration, max without, unless given
  std::string order = "natural";

  void add_to(CLI::App& app);
  bool calibrated() const { return !data.empty() || !load.empty(); }
  bool searches() const { return range.empty() ? calibrated() : range == "search"; }
  bool compensates() const { return rounding.empty() ? calibrated() : rounding == "compensated"; }
  /// Without `moments` and reports. Throws UsageError for options that need a calibration where none is asked for.
  QuantizeOptions quantize_options() const;
  /// Measures the moments of the model's layers on training images, or reads them; nothing when neither is asked for.
  /// Warns on the standard error when the data has no training images and test images have to do.
  std::optional<Calibration> obtain(const std::filesystem::path& model_path, const StateDict& model,
                                    Backend& backend) const;
};

/// What a packed file says about how its codes were chosen: nothing where that was the plain way.
void describe(std::map<std::string, std::string>& metadata, const CalibrationFlags& flags,
              const std::optional<Calibration>& calibration);

}  // namespace nibblenet::tools
