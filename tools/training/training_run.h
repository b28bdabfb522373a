#pragma once

#include <filesystem>
#include <functional>

#include "engine/io/json.h"
#include "training/trainer.h"

namespace nibblenet::tools {

/// Runs a training, with a progress line and a checkpoint every `seconds`. A checkpoint that cannot
/// be written is reported, and training continues. A request to stop writes a checkpoint and throws
/// Stopped with `resume_command`. Where that checkpoint cannot be written either, `save_model`
/// writes the model, which is smaller, and IoError says so. The caller writes the last checkpoint.
/// Without a name for it, no checkpoint is written: another rank does that.
void train(Trainer& trainer, const TrainingOptions& options, const std::filesystem::path& checkpoint, double seconds,
           const std::string& resume_command, const std::function<void()>& save_model);

/// Throws UsageError when writing `checkpoint` would lose that of an unfinished run, or a file of
/// another kind. `resumed` (may be empty), the checkpoint that this run continues, may be replaced,
/// and with --force any.
void expect_replaceable(const std::filesystem::path& checkpoint, const std::filesystem::path& resumed);

/// The fraction of each trained layer's weights that are 0, as --json writes it; with `print` also
/// printed.
nlohmann::json show_sparsity(const Trainer& trainer, bool print);

}  // namespace nibblenet::tools
