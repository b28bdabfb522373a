#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tools/study/plots.h"
#include "tools/study/report_files.h"

namespace nibblenet::tools {

/// How drawing went. A missing gnuplot is no error: the report then has no
/// plots.
struct DrawnPlots {
  Figures figures;
  std::string problem;  ///< one line; empty when all were drawn
};

/// Writes <name>.gp into `folder`, which is created, and lets gnuplot write <name>.svg and
/// <name>.png there. No shell takes part.
DrawnPlots draw(const std::vector<Plot>& plots, const std::filesystem::path& folder);

/// An SVG file as a part of a page: without prologue, ids its own, and ink in the colour of the
/// text around it.
std::string inline_svg(std::string svg, const std::string& name);

}  // namespace nibblenet::tools
