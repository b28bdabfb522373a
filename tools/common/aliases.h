#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/io/json.h"

namespace nibblenet::tools {

// Old names: what 0.1 called some flags, values of flags, JSON keys, CSV columns and plots. Release
// 0.2 reads and writes them beside the new names; 0.3 drops this file and its calls.

/// Replaces old names of `app`'s flags and of their values in `arguments`. The first use of each
/// old name prints one line to the standard error. Throws UsageError when a flag is given by both
/// of its names.
void take_old_names(const CLI::App& app, std::vector<std::string>& arguments);

/// Adds the other name of every renamed key of `document`, at any depth: the new name to old files,
/// the old name for old readers.
void add_both_names(nlohmann::json& document);

/// The name of a CSV column, followed by its old name if it has one.
std::vector<std::string> names_of_column(const std::string& column);

/// Copies each plot in `folder` that has an old name to a file of that name.
void copy_to_old_plots(const std::filesystem::path& folder);

}  // namespace nibblenet::tools
