#pragma once

#include <map>
#include <string>
#include <string_view>

#include "kernels/weight.h"

namespace nibblenet {

/// Prefix of the metadata keys that hold the largest inputs of layers: "input_range:features.3".
inline constexpr std::string_view input_range_key = "input_range:";

/// The range of a layer's input by a model's metadata: without an entry, each image has its own.
/// `behind_relu`: no input is negative. Throws FormatError for an entry that is no positive number.
InputRange input_range(const std::map<std::string, std::string>& metadata, std::string_view layer, bool behind_relu);

/// Writes the largest input of a layer to the metadata, so that input_range() reads the same bits.
void set_input_range(std::map<std::string, std::string>& metadata, std::string_view layer, float largest);

}  // namespace nibblenet
