#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibblenet::tools {

// The names that 0.1 gave to flags, their values, keys of JSON, columns of CSV and plots. Release
// 0.2 takes and writes them beside the new ones; 0.3 drops this file and its calls.

/// Replaces old names of `app`'s flags and of their values in `arguments`, and says so on the
/// standard error, one line a name and process. Throws UsageError where a flag is given by both of
/// its names.
void take_old_names(const CLI::App& app, std::vector<std::string>& arguments);

/// Gives every renamed key of `document`, at any depth, its other name as well, for readers of old
/// files and of new ones.
void add_both_names(nlohmann::json& document);

/// The column's name, and the old one where it has one.
std::vector<std::string> names_of_column(const std::string& column);

/// Copies plots in `folder` that have an old name to it.
void copy_to_old_plots(const std::filesystem::path& folder);

}  // namespace nibblenet::tools
