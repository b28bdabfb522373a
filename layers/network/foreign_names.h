#pragma once

#include <string>
#include <vector>

#include "engine/io/state_dict.h"

namespace nibblenet {

/// Gives the parameters of a file from elsewhere the names that networks() have: takes off what
/// wrappers put in front of a name or into it ("module.", "_orig_mod.",
/// "backbone.features.module.0.weight"), in any order and depth. Names that are of no network stay
/// as they are. Where several networks lie beside each other, those of averaged weights (EMA) are
/// left aside. Returns what there is to say about that, one line each. Throws FormatError where two
/// others are left: a key has to choose (Reading::key).
std::vector<std::string> adopt_names(StateDict& dict);

}  // namespace nibblenet
