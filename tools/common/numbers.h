#pragma once

#include <CLI/CLI.hpp>

namespace nibblenet::tools {

/// Makes every option of `app` that takes a number, by the name of its type, refuse what is none:
/// NaN, infinity, and what is beyond 64 bits or a double. CLI11 alone wraps, saturates, or lets NaN
/// through every range.
void check_numbers(CLI::App& app);

}  // namespace nibblenet::tools
