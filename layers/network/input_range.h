#pragma once

#include <map>
#include <string>
#include <string_view>

#include "kernels/weight.h"

namespace nibblenet {

/// Prefixes of the metadata keys that hold the largest inputs of layers, and the steps between 0
/// and these: "input_range:features.3".
inline constexpr std::string_view input_range_key = "input_range:";
inline constexpr std::string_view input_steps_key = "input_steps:";

/// The range of a layer's input by a model's metadata: without an entry, each image has its own, of
/// 255 steps. `behind_relu`: no input is negative. Throws FormatError for a range that is no
/// positive number, and for steps that are neither 127 nor 255.
InputRange input_range(const std::map<std::string, std::string>& metadata, std::string_view layer, bool behind_relu);

/// Writes the largest input of a layer to the metadata, so that input_range() reads the same bits.
void set_input_range(std::map<std::string, std::string>& metadata, std::string_view layer, float largest);
/// Writes the steps of a layer's input: 127, or 255, which removes the entry.
void set_input_steps(std::map<std::string, std::string>& metadata, std::string_view layer, int steps);

}  // namespace nibblenet
