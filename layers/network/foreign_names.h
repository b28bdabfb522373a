#pragma once

#include <string>
#include <vector>

#include "engine/io/state_dict.h"

namespace nibblenet {

/// Renames the parameters of a file from elsewhere to the names of networks(). Removes what
/// wrappers put in front of a name or into it ("module.", "_orig_mod.",
/// "backbone.features.module.0.weight"), in any order and depth. Other names stay. Of several
/// networks in a file, it drops averaged weights (EMA). Returns one line for each choice. Throws
/// FormatError when two other networks remain: a key has to choose (Reading::key).
std::vector<std::string> adopt_names(StateDict& dict);

}  // namespace nibblenet
