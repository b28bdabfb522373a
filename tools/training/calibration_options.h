#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/quant/quantizer.h"
#include "training/compression/weight_packer.h"

namespace nibblenet::tools {

/// One --range: how scales are found, and of the weights that a pattern names or of all.
struct RangeRule {
  std::string pattern = "*";
  Range range = Range::max;
  float deviations = 0;  ///< of Range::step
};
/// "search", "step:1.4", "features.*=step:1". Throws UsageError with the forms there are.
RangeRule parse_range(const std::string& text);

/// How codes and ranges are chosen, and the calibration that GPTQ needs.
struct CalibrationFlags {
  std::string data;  ///< --calibrate
  int64_t images = 2000;
  uint64_t seed = 1;
  std::string load;  ///< --calibration
  std::string save;
  std::string rounding;             ///< gptq with a calibration, nearest without, unless given
  std::vector<std::string> ranges;  ///< the last that matches; search with a calibration, max without, if none does
  std::string order = "natural";
  std::optional<double> rate_weight;  ///< none: best_rate_weight for --target-file, else 0
  std::optional<int> passes;          ///< none: as passes_of() says

  /// Where the calibration comes from, and what codes are chosen by.
  void add_source_to(CLI::App& app);
  void add_choice_to(CLI::App& app);
  bool calibrated() const { return !data.empty() || !load.empty(); }
  bool uses_gptq() const { return rounding.empty() ? calibrated() : rounding == "gptq"; }
  /// 2 unless given, but 0 for codes meant for --compress: there, passes add as many bits as they
  /// take off the error.
  int passes_of(const QuantizeOptions& options) const {
    return passes.value_or(options.range == Range::step || options.rate_weight > 0 ? 0 : 2);
  }
  /// QuantizeOptionsOf these flags. Throws UsageError for options that need a calibration if there
  /// is none.
  QuantizeOptions quantize_options(const std::string& weight, float step = 0) const;
  /// What packs by these flags, which it copies. `calibration` may be null.
  WeightPacker packer(const Calibration* calibration, Backend& backend) const;
  /// Throws UsageError when a --range names none of the model's weights.
  void expect_ranges_used(const StateDict& model) const;
  /// Measures the Hessians of the model's layers on training images, or reads them. Returns nothing
  /// if the flags ask for neither. Warns on the standard error when the data has no training images
  /// and test images have to do.
  std::optional<Calibration> obtain(const std::filesystem::path& model_path, const StateDict& model,
                                    Backend& backend) const;
};

/// "data_set" of a tool's JSON: what the calibration was measured on.
nlohmann::json data_set_json(const Calibration& calibration);

/// Adds to a packed file's metadata how its codes were chosen; adds nothing for the default.
/// `calibration` may be null.
void describe(std::map<std::string, std::string>& metadata, const CalibrationFlags& flags,
              const Calibration* calibration);

}  // namespace nibblenet::tools
