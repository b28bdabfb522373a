#pragma once

#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/quant/scheme.h"
#include "engine/quant/simulate.h"
#include "engine/quant/size.h"

namespace nibblenet::tools {

/// What a sweep does to the weights: store them as n-bit codes, or put them through what the notebooks do.
using SweepScheme = std::variant<Scheme, SimulatedScheme>;

std::string to_string(const SweepScheme& scheme);
/// "dynamic-tree:4:row:absolute" or "simulated-dynamic-tree:4". Throws UsageError.
SweepScheme parse_sweep_scheme(std::string_view text);
/// Every scheme of lists separated by commas, each once, in their order. Throws UsageError, for empty names too.
std::vector<SweepScheme> parse_scheme_lists(std::span<const std::string> lists);

/// "seed": the notebooks' set, each simulation followed by codes that really have its bits.
/// "full": every method, width and granularity, and the simulations. Throws UsageError for other names.
std::vector<SweepScheme> preset_schemes(std::string_view name);

/// The schemes that do with n-bit codes what a simulation claims, the notebooks' own scales first.
std::vector<Scheme> counterparts(const SimulatedScheme& scheme);

/// What the notebooks say they need for a weight of this shape: codes of the claimed bits and float32 maxima.
EstimatedSize claimed_size(const SimulatedScheme& scheme, const Shape& shape);

/// File of a packed model: "linear_8_channel.safetensors"; the notebooks' own dynamic tree (rows, absolute maxima)
/// bears their name for it, "dt_quantized_model_bl_4.safetensors".
std::string model_file_name(const Scheme& scheme);
/// "dt_counts_bl_4.json", the notebooks' name of exponent counts.
std::string counts_file_name(int bits);

}  // namespace nibblenet::tools
