#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/atomic_file.h"

namespace nibblenet::tools {

/// The kind of an output decides what it may replace without --force, and where it may go. Only a
/// model needs a regular file, since the tool reads it back; others may go to a pipe or a device.
enum class OutputKind {
  model,        ///< replaces a model
  exported,     ///< replaces a model
  onnx,         ///< replaces an ONNX model of ours
  calibration,  ///< replaces a calibration
  logits,       ///< replaces logits
  card,         ///< replaces a model card of ours
  json          ///< replaces JSON
};

/// Adds --force, with which claim_output() refuses no existing file.
void add_force_option(CLI::App& app);
/// Whether --force was given.
bool overwriting_forced();

/// Claims `target`, the file that `option` names, before the work starts. Returns nothing when
/// `target` is empty, a pipe or a device. Throws IoError when it cannot be written. Without --force
/// throws UsageError when it is one of `inputs`, a dangling link, or holds another kind of content.
std::optional<FileClaim> claim_output(const std::string& option, const std::filesystem::path& target, OutputKind kind,
                                      const std::vector<std::filesystem::path>& inputs = {});

/// Claims a file that is only written later, like a checkpoint. `what` says in errors what the file
/// is: "the checkpoint of --out". Throws IoError when it cannot be written or another run has it,
/// UsageError when this run claimed it for something else.
FileClaim claim_file(const std::string& what, const std::filesystem::path& target);

}  // namespace nibblenet::tools
