#pragma once

#include <string_view>

#include "engine/quant/scheme.h"

namespace nibblenet::tools {

/// What `pack --bits N` alone does to a weight: the schemes that measured best in accuracy per byte (docs/schemes.md
/// has the table and how it was made).
Scheme default_scheme_for(std::string_view weight_name, int bits);

/// The same with a calibration: what GPTQ does best with.
Scheme calibrated_scheme_for(std::string_view weight_name, int bits);

}  // namespace nibblenet::tools
