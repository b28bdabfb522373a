#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "training/trainer.h"

namespace nibblenet::tools {

/// Runs the training with a progress line, a checkpoint every two minutes, and one at the end or on
/// Ctrl-C, which throws Stopped with the command that goes on.
void train(Trainer& trainer, const TrainingOptions& options, const std::filesystem::path& checkpoint,
           const std::string& resume_command);

/// The epochs, for --json.
nlohmann::json history_json(const std::vector<EpochReport>& history);

/// Fraction of each trained layer that is 0, for --json. Prints it too if asked.
nlohmann::json show_sparsity(const Trainer& trainer, bool print);

}  // namespace nibblenet::tools
