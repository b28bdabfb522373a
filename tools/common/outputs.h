#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/atomic_file.h"

namespace nibblenet::tools {

/// What a file to be written is: what it may replace without --force, and where it may go.
enum class OutputKind {
  model,     ///< an ordinary file, which is read again; replaces anything but images and archives
  exported,  ///< the same, or a pipe or device
  logits,    ///< replaces logits only
  json       ///< replaces JSON only
};

/// Adds --force, which lets claim_output() pass what it refuses.
void add_force_option(CLI::App& app);
/// Whether --force was given.
bool overwriting_forced();

/// Claims the file `target` that `option` names, before the work starts; nothing for no name, a
/// pipe or a device. Throws IoError where it could not be written, and without --force UsageError
/// where it is one of `inputs`, a link to nothing, or another kind of file.
std::optional<FileClaim> claim_output(const std::string& option, const std::filesystem::path& target, OutputKind kind,
                                      const std::vector<std::filesystem::path>& inputs = {});

}  // namespace nibblenet::tools
