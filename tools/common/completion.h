#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace nibblenet::tools {

/// A script by which a shell, "bash" or "zsh", completes the options of a tool, the words that they
/// take, and names of files. Throws UsageError for another shell.
std::string completion_script(const CLI::App& app, const std::string& shell);

}  // namespace nibblenet::tools
