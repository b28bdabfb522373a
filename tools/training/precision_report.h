#pragma once

#include <optional>
#include <string>

#include "engine/io/json.h"
#include "engine/io/state_dict.h"
#include "kernels/backend.h"
#include "layers/network/precision_choice.h"
#include "tools/common/data_search.h"
#include "training/compression/calibration.h"

namespace nibblenet::tools {

/// Training images to measure on what int8 and bfloat16 cost a packed model.
struct PrecisionImages {
  Dataset images;
  Split split = Split::train;
  std::string missing;  ///< why there are none; else empty
};

/// Loads 500 images that `calibration`, which may be null, was not made on: those behind the ones
/// that it took, or the held-out ones of a model that was trained with validation. Labels become
/// the model's. Where the data has none, `missing` says so. Throws UsageError for other classes
/// than the model's.
PrecisionImages load_precision_images(DataSource& data, const StateDict& model, const Calibration* calibration);

/// What measuring gave.
struct PrecisionReport {
  std::string line;  ///< for the user
  nlohmann::json json;
};

/// Measures the narrow precisions of a packed model on the images, writes the divergences to its
/// metadata, and reports. Inputs of 127 steps (halve_input_steps()) get 255 again where the
/// divergence of int8 is above `largest`. Measures on the CPU where `backend` does not compute in
/// these precisions. Throws Interrupted when the user asks to stop.
PrecisionReport measure_and_describe(StateDict& packed, const PrecisionImages& images, Backend& backend,
                                     double largest = most_divergence);

}  // namespace nibblenet::tools
