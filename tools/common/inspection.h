#pragma once

#include "engine/io/json.h"
#include "engine/io/state_dict.h"

namespace nibblenet::tools {

/// What a model's file holds, as inspect's JSON: "tensors" (name, shape, scheme, bits per weight,
/// bytes, extremes, and what a packed one adds), their "total", "bytes", "header", "metadata".
nlohmann::json inspection_json(const StateDict& dict);

}  // namespace nibblenet::tools
