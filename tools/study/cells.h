#pragma once

#include <fmt/format.h>

#include <string>

#include "tools/study/row.h"

/// Cells that several tables of a report share.
namespace nibblenet::tools {

/// Cells of a table: a percentage, pairs of answers that differ, a p value.
inline std::string percent(double fraction) { return fmt::format("{:.2f}", 100 * fraction); }
inline std::string pairs(const Row& row) { return fmt::format("−{} +{}", row.only_float, row.only_this); }
inline std::string p_text(double p) { return p < 0.0001 ? "< 0.0001" : fmt::format("{:.4f}", p); }

}  // namespace nibblenet::tools
