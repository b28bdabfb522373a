#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "training/trainer.h"

namespace nibblenet::tools {

/// Runs the training with a progress line and a checkpoint every `seconds`; one that cannot be
/// written is reported, and training goes on. A request to stop saves one, too, and throws Stopped
/// with the command that goes on. At the end the caller saves.
void train(Trainer& trainer, const TrainingOptions& options, const std::filesystem::path& checkpoint, double seconds,
           const std::string& resume_command);

/// Throws UsageError where `checkpoint` exists and is not that of a run that is done: it would be
/// lost. The run that was resumed from it may write it.
void expect_replaceable(const std::filesystem::path& checkpoint, const std::filesystem::path& resumed);

/// The epochs, for --json.
nlohmann::json history_json(const std::vector<EpochReport>& history);

/// Fraction of each trained layer that is 0, for --json. Prints it too if asked.
nlohmann::json show_sparsity(const Trainer& trainer, bool print);

}  // namespace nibblenet::tools
