#pragma once

#include <CLI/CLI.hpp>

namespace nibblenet::tools {

/// Makes every option of `app` that takes a number refuse NaN, infinity, and what does not fit 64
/// bits or a double. The name of an option's type (N, X, MB, …) tells that it takes a number. CLI11
/// alone wraps, saturates, or lets NaN pass every range.
void check_numbers(CLI::App& app);

}  // namespace nibblenet::tools
