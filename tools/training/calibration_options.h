#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/io/json.h"
#include "engine/quant/quantizer.h"
#include "training/compression/weight_packer.h"

namespace nibblenet::tools {

/// One --range: how the scales of some weights are chosen.
struct RangeRule {
  std::string pattern = "*";  ///< names the weights
  Range range = Range::max;
  float deviations = 0;  ///< of Range::step
};
/// Parses "search", "step:1.4" or "features.*=step:1". Throws UsageError that lists the forms.
RangeRule parse_range(const std::string& text);

/// Ranks that calibrate together.
struct CalibratingRanks {
  Ranks& ranks;
  std::function<void(const Dataset&)> on_images;  ///< once the images are read, before the work
  WeightOwners owners;                            ///< of the Hessians: owners_of_weights()
};

/// The flags of calibration: where it comes from, and how codes and scales are chosen by it.
struct CalibrationFlags {
  std::string data;       ///< --calibrate
  int64_t images = 2000;  ///< --calibration-images
  uint64_t seed = 1;      ///< --calibration-seed
  Unreadable unreadable = Unreadable::refuse;
  std::string load;                   ///< --calibration
  std::string save;                   ///< --save-calibration
  std::string rounding;               ///< --rounding; empty: gptq with a calibration, else nearest
  std::vector<std::string> ranges;    ///< --range, the last match counts; no match: search with a calibration, else max
  std::string order = "natural";      ///< --column-order
  std::optional<double> rate_weight;  ///< nothing: best_rate_weight for --target-file, else 0
  std::optional<int> passes;          ///< nothing: passes_of() decides

  void add_source_to(CLI::App& app);  ///< where the calibration comes from, and --skip-unreadable
  void add_choice_to(CLI::App& app);  ///< the flags that say how codes are chosen
  bool calibrated() const { return !data.empty() || !load.empty(); }
  bool uses_gptq() const { return rounding.empty() ? calibrated() : rounding == "gptq"; }
  /// GPTQ's coordinate-descent passes: --passes, else 2, but 0 for codes that --compress will
  /// store. There, passes cost in bits what they gain in error.
  int passes_of(const QuantizeOptions& options) const {
    return passes.value_or(options.range == Range::step || options.rate_weight > 0 ? 0 : 2);
  }
  /// How to choose a weight's codes; see QuantizeOptionsOf. Throws UsageError for options that need
  /// a calibration when there is none.
  QuantizeOptions quantize_options(const std::string& weight, float step = 0) const;
  /// A packer by a copy of these flags. `calibration` may be null.
  WeightPacker packer(const Calibration* calibration, Backend& backend) const;
  /// Throws UsageError when a --range names none of the model's weights.
  void expect_ranges_used(const StateDict& model) const;
  /// Measures the Hessians of the model's layers on training images, or reads them from a file.
  /// These are the fitting images if the model was trained with validation. Returns nothing when
  /// the flags ask for neither. Warns when the data has test images only, and takes these.
  /// `data_set` gets the value of "data_set" in a tool's JSON; of a calibration that was read it
  /// describes the images alone. With `together`, each rank gets the Hessians that it owns, and the
  /// first writes those of all to --save-calibration; of a file each reads all.
  std::optional<Calibration> obtain(const std::filesystem::path& model_path, const StateDict& model, Backend& backend,
                                    nlohmann::json* data_set = nullptr, CalibratingRanks* together = nullptr) const;
};

/// Whether a model's metadata says that held-out training images (engine/io/holdout.h) chose its
/// epoch.
bool trained_with_validation(const StateDict& model);

/// Adds to a packed file's metadata how its codes were chosen, unless by default, and the ranges of
/// the layers' inputs. `calibration` may be null.
void describe(std::map<std::string, std::string>& metadata, const CalibrationFlags& flags,
              const Calibration* calibration);

}  // namespace nibblenet::tools
