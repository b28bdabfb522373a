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

/// What the paired test says of a row against float: points of accuracy only where they are more
/// than chance.
inline std::string against_float(const Row& row, const Row& float_row) {
  if (row.mcnemar_p >= 0.05)
    return fmt::format("no difference from float that {} images can show ({}, p = {})", row.images, pairs(row),
                       p_text(row.mcnemar_p));
  const std::string p = row.mcnemar_p < 0.0001 ? "p < 0.0001" : "p = " + p_text(row.mcnemar_p);
  return fmt::format("{:+.2f} points against float ({}, {})", 100 * (row.accuracy - float_row.accuracy), pairs(row), p);
}

}  // namespace nibblenet::tools
