#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>

namespace nibblenet::tools {

/// Makes every option of `app` that takes a number refuse NaN, infinity, and what does not fit 64
/// bits or a double. The name of an option's type (N, X, MB, …) tells that it takes a number. CLI11
/// alone wraps, saturates, or lets NaN pass every range.
void check_numbers(CLI::App& app);

/// The whole numbers from 0, and from 1. CLI11's own ranges are of doubles: their messages print
/// the largest, all 309 digits.
inline const CLI::Range not_negative(int64_t{0}, std::numeric_limits<int64_t>::max(), "NONNEGATIVE");
inline const CLI::Range positive(int64_t{1}, std::numeric_limits<int64_t>::max(), "POSITIVE");

}  // namespace nibblenet::tools
