#pragma once

#include <string_view>

#include "engine/io/state_dict.h"

namespace nibblenet {

/// Names of the training state in a checkpoint: the metadata key of its position, and the prefixes
/// of momenta, of master weights, of moving averages and of the best epoch's model.
inline constexpr const char* training_position_key = "training_position";
inline constexpr std::string_view momentum_prefix = "momentum.";
inline constexpr std::string_view master_prefix = "latent.";
inline constexpr std::string_view average_prefix = "average.";
inline constexpr std::string_view best_prefix = "best.";

/// Moves the parameters under a prefix out of the dict, and strips the prefix from their names.
StateDict take_from_under(std::string_view prefix, StateDict& from);

/// Removes the training state of a checkpoint. Returns false if the dict is no checkpoint.
bool drop_training_state(StateDict& dict);

}  // namespace nibblenet
