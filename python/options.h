#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "engine/core/error.h"

namespace nibblenet::python {

/// Parses a tool's options, each "--name=value". Throws UsageError.
inline void parse_options(CLI::App& app, std::vector<std::string> arguments) {
  std::ranges::reverse(arguments);  // as CLI11 takes them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::Error& error) {
    throw UsageError(error.what());
  }
}

}  // namespace nibblenet::python
