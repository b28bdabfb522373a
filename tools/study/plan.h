#pragma once

#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/quant/scheme.h"
#include "engine/quant/simulate.h"
#include "engine/quant/size.h"
#include "layers/network/network_spec.h"
#include "tools/study/recipe.h"

namespace nibblenet::tools {

/// How a sweep treats the weights: stores them all in one way as n-bit codes, simulates what the
/// notebooks do, packs them by a recipe, or takes a packed model from a file.
using SweepScheme = std::variant<Scheme, SimulatedScheme, Recipe, ModelFile>;

/// The scheme as --schemes takes it.
std::string to_string(const SweepScheme& scheme);
/// "dynamic-tree:4:row:absolute", "simulated-dynamic-tree:4", "pack --bits 3 --calibrated" or
/// "model NAME". Throws UsageError.
SweepScheme parse_sweep_scheme(std::string_view text);
/// Every scheme of lists separated by commas, each once, in their order. Throws UsageError, for
/// empty names too.
std::vector<SweepScheme> parse_scheme_lists(std::span<const std::string> lists);

/// "notebooks": the original notebooks' set, each simulation followed by codes that really have its
/// bits. "full": every method, width and granularity, and the simulations. "frontier": the best of
/// pack with this network, with and without a calibration. Throws UsageError for other names.
std::vector<SweepScheme> preset_schemes(std::string_view name, const NetworkSpec& network);

/// How a simulation scales weights, and which schemes really store what it claims.
struct SimulationForm {
  std::string_view groups;                ///< weights that share a scale, as a granularity
  bool maxima;                            ///< scales are absolute maxima
  std::vector<std::string> counterparts;  ///< schemes at {} bits, the notebooks' own scales first
};
/// The form of a simulation.
const SimulationForm& form_of(Simulation simulation);

/// The counterparts of a simulation at its bits.
std::vector<Scheme> counterparts(const SimulatedScheme& scheme);

/// The bits that the notebooks claim for a weight of this shape: codes of the claimed width and
/// float32 maxima.
EstimatedSize claimed_size(const SimulatedScheme& scheme, const Shape& shape);

/// File of a packed model: "linear_8_channel.safetensors"; the notebooks' own dynamic tree (rows,
/// absolute maxima) bears their name for it, "dt_quantized_model_bl_4.safetensors". Of a recipe:
/// "pack_bits_3_calibrated.safetensors".
std::string model_file_name(const Scheme& scheme);
std::string model_file_name(const Recipe& recipe);
/// "dt_counts_bl_4.json", the notebooks' name of exponent counts.
std::string counts_file_name(int bits);

}  // namespace nibblenet::tools
