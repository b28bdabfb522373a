#pragma once

#include <string>
#include <vector>

#include "engine/io/state_dict.h"

namespace nibblenet {

/// The parameters of a network from what a file holds: drops the training state of a checkpoint,
/// gives parameters their canonical names, folds batch norms into the convolutions in front of
/// them, and checks the rest. Returns one line for each such change. Throws FormatError that begins
/// with `title` when the dict holds none of networks(), or NaN or infinities among its floats.
std::vector<std::string> make_canonical(StateDict& dict, const std::string& title);

}  // namespace nibblenet
