#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"
#include "kernels/backend.h"
#include "tools/common/data_search.h"
#include "tools/training/bit_allocation.h"
#include "tools/training/calibration_options.h"
#include "tools/training/scheme_options.h"

namespace nibblenet::tools {

/// How a float model's weights become codes: all of it in flags.
struct PackingFlags {
  SchemeFlags scheme;
  CalibrationFlags calibration;
  AllocationOptions allocation;

  /// Throws UsageError for flags that contradict each other.
  void validate() const;
  /// Throws UsageError for what does not fit the model: a pattern that names nothing, a scheme
  /// without such a range.
  void expect_fit(const StateDict& model) const;
};

/// What GPTQ did to a layer.
struct LayerReport {
  std::string weight;
  GptqReport gptq;
};

/// Turns weights into codes as the flags say, on the device where it can, on the host where a
/// calibration or another range than the maximum has a say. A Hessian is inverted once for all ways
/// to store a weight that follow each other.
class WeightPacker {
 public:
  /// `calibration` may be null. All three must outlive it.
  WeightPacker(const CalibrationFlags& flags, const Calibration* calibration, Backend& backend)
      : flags_(flags), calibration_(calibration), backend_(backend) {}

  /// A candidate's step, where it has one, takes the place of --range. `on_weights` hears how many
  /// of the tensor's weights are done, and throws to stop; without it, Ctrl-C throws Stopped.
  /// `report`, unless null, hears what GPTQ did.
  PackedTensor operator()(const Parameter& parameter, const Candidate& candidate,
                          const std::function<void(int64_t)>& on_weights = {}, LayerReport* report = nullptr);

  bool uses_gptq() const { return flags_.uses_gptq(); }
  int64_t calibration_images() const { return calibration_ != nullptr ? calibration_->images : 0; }

 private:
  const HessianFactor& factor_of(const std::string& weight, ColumnOrder order);

  const CalibrationFlags& flags_;
  const Calibration* calibration_;
  Backend& backend_;
  std::string factored_;  ///< the weight that factor_ is of
  HessianFactor factor_;
};

/// Hears of the weights done so far, of how many, and of the tensor at work; throws to stop.
using OnPacking = std::function<void(int64_t done, int64_t total, const std::string& weight)>;

/// Packs every weight of `dict` in place; biases stay as they are. `on_packed`, unless empty, hears
/// of a tensor that will not be asked for again.
std::vector<LayerReport> pack_weights(StateDict& dict, SchemeChoice& schemes, WeightPacker& packer,
                                      const OnPacking& on_packing,
                                      const std::function<void(const std::string& weight)>& on_packed = {});

/// Packs every weight of `dict` in place, each as is chosen for it on training images of `data`,
/// and prints what was weighed. Returns the report of the choice. Throws UsageError for a target
/// that cannot be met and for images of classes that the model does not know.
nlohmann::json allocate_and_pack(const PackingFlags& flags, StateDict& dict, WeightPacker& packer, Backend& backend,
                                 DataSource data);

}  // namespace nibblenet::tools
