#pragma once

#include <filesystem>

#include "engine/io/json.h"
#include "engine/io/state_dict.h"
#include "kernels/backend.h"
#include "tools/common/data_search.h"
#include "tools/common/rank_group.h"
#include "tools/training/bit_allocation.h"
#include "tools/training/calibration_options.h"
#include "tools/training/scheme_options.h"

namespace nibblenet::tools {

/// All flags that say how a float model's weights become codes.
struct PackingFlags {
  SchemeFlags scheme;
  CalibrationFlags calibration;
  AllocationOptions allocation;

  /// Whether targets choose among the schemes of several methods: no flag names one, nor says how
  /// its scales are found.
  bool chooses_methods() const;
  /// Whether the file is to be compressed though no flag says so: entropy-coded codes are among
  /// what --target-file chooses from.
  bool implies_compression() const { return chooses_methods() && allocation.target_file > 0; }
  /// Throws UsageError for flags that contradict each other.
  void validate() const;
  /// Throws UsageError for flags that do not fit the model: a pattern that names no layer, a range
  /// that a scheme does not have.
  void expect_fit(const StateDict& model) const;
};

/// Chooses a candidate for every weight of `dict` on training images of `data` (see allocate()),
/// and packs the weights in place. Returns the report of the choice. Throws UsageError for a target
/// that cannot be met, and for images of classes that the model does not know.
nlohmann::json allocate_and_pack(const PackingFlags& flags, StateDict& dict, WeightPacker& packer, Backend& backend,
                                 DataSource data);

/// What pack_by_flags() did.
struct PackingReport {
  std::vector<LayerReport> layers;  ///< of GPTQ
  std::vector<std::string> lines;   ///< for the user: what int8 and bfloat16 cost
  nlohmann::json json;  ///< "gptq", "calibration_seconds", "allocation", "precisions" and "data_set" of pack's JSON
};

/// Ranks that pack one model together.
struct PackingRanks {
  RankGroup& group;
  RankGroup::Facts facts;  ///< what all must have in common, beside the images
};

/// Packs the weights of a float model in place, by flags that fit it (PackingFlags::expect_fit).
/// Writes to its metadata how, the ranges of its layers' inputs and, where there are images, what
/// int8 and bfloat16 cost. `input` is the file that it came from, or empty; `data` has the images
/// of targets and of this measurement, empty: those of --calibrate. `packed` may be null, or a
/// packed model that `dict` holds in float32: weights that no --layer names then keep its codes, to
/// the bit. Throws Stopped or Interrupted when the user asks to stop. With `together`, ranks share
/// the calibration and the packing of a float model; what comes behind is for the first alone.
/// Throws UsageError then for targets, which need all Hessians in one process.
PackingReport pack_by_flags(const PackingFlags& flags, StateDict& dict, const std::filesystem::path& input,
                            const std::string& data, Backend& backend, const StateDict* packed = nullptr,
                            PackingRanks* together = nullptr);

}  // namespace nibblenet::tools
