// Feeds arbitrary bytes to the reader of calibrations, as a file that is said to belong to a small
// model.

#include <cmath>

#include "tests/fuzz/fuzz_file.h"
#include "training/compression/calibration.h"

namespace {

using namespace nibblenet;

/// Two weights of 4 and 9 inputs, made by a formula: the seeds hold the model's fingerprint.
StateDict small_model() {
  StateDict model;
  for (const auto& [name, shape] : {std::pair<const char*, Shape>{"classifier.1.weight", {2, 4}},
                                    std::pair<const char*, Shape>{"features.0.weight", {2, 1, 3, 3}}}) {
    Tensor<float> values(host_memory(), shape, MemoryCategory::data);
    for (int64_t i = 0; i < shape.elements(); ++i) values.data()[i] = static_cast<float>(i) - 4.0F;
    model.parameters.push_back({.name = name, .value = std::move(values)});
  }
  return model;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const StateDict model = small_model();
  try {
    const Calibration calibration = load_calibration(fuzz::as_file({data, size}), model);
    fuzz::require(calibration.images >= 0 && calibration.hessians.size() == model.parameters.size());
    const std::vector<float>& fisher = calibration.fisher.at("classifier.1.weight");
    fuzz::require(fisher.size() == 2 && fisher[0] >= 0 && std::isfinite(fisher[1]));
    for (const Parameter& parameter : model.parameters) {
      const Hessian& hessian = calibration.hessians.at(parameter.name);
      fuzz::require(hessian.inputs == parameter.shape().inner_elements());
      for (int64_t i = 0; i < hessian.inputs; ++i)
        for (int64_t j = 0; j < hessian.inputs; ++j)
          fuzz::require(std::isfinite(hessian.at(i, j)) && hessian.at(i, j) == hessian.at(j, i));
    }
  } catch (const FormatError&) {
  } catch (const UsageError&) {  // of another model
  }
  return 0;
}
