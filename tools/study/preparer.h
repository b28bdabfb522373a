#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tools/study/runner.h"

namespace nibblenet::tools {

/// Makes the weights of a row and notes what evaluating does not tell: errors, claims, bytes of the
/// compressed file.
class Preparer {
 public:
  /// `say` hears what is being done, and throws to stop.
  Preparer(const SweepFolder& folder, const SweepInputs& inputs, std::function<void(const std::string&)> say);

  /// The model by this scheme, and a float copy of the model.
  StateDict operator()(const SweepScheme& scheme, Measurement& result);
  StateDict copy_of_model() const;
  /// The float model, compared with itself.
  void note_no_errors(Measurement& result) const { compare(inputs_.model, false, result); }
  /// Writes the packed model that an earlier run measured and did not keep, and the notebooks'
  /// counts of a dynamic tree's exponents.
  void write_files(const SweepScheme& scheme) const;

 private:
  /// A layer's weights in the float model.
  struct Weights {
    std::string name;  ///< of the layer
    const Parameter* parameter;
    TensorView<const float> view() const { return parameter->values().view(); }
  };

  StateDict prepare(const Scheme& scheme, Measurement& result);
  StateDict prepare(const SimulatedScheme& scheme, Measurement& result);
  StateDict prepare(const Recipe& recipe, Measurement& result);
  StateDict prepare(const ModelFile& file, Measurement& result);

  StateDict packed_by(const Scheme& scheme) const;
  StateDict packed_by(const Recipe& recipe) const;
  const Calibration* calibration_for(const PackingFlags& flags) const;
  StateDict read_back(const StateDict& packed, const std::string& name) const;
  void compress(const StateDict& dict, Measurement& result) const;
  void compare(const StateDict& dict, bool count_values, Measurement& result) const;
  ExponentCounts counts_of_all(int bits) const;
  void write_counts(int bits) const;

  const SweepFolder& folder_;
  const SweepInputs& inputs_;
  std::function<void(const std::string&)> say_;
  std::vector<Weights> layers_;  ///< in the network's order
};

}  // namespace nibblenet::tools
