#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tools/study/plots.h"
#include "tools/study/report_files.h"

namespace nibblenet::tools {

/// What became of the plots. Without gnuplot there are none, which is no error: a report does
/// without.
struct DrawnPlots {
  Figures figures;
  std::string problem;  ///< one line; empty when all were drawn
};

/// Writes <name>.gp into `folder`, which is made, and lets gnuplot make <name>.svg and <name>.png
/// of it there. No shell has a part in it.
DrawnPlots draw(const std::vector<Plot>& plots, const std::filesystem::path& folder);

/// An SVG file as a part of a page: without prologue, ids its own, and ink in the colour of the
/// text around it.
std::string inline_svg(std::string svg, const std::string& name);

}  // namespace nibblenet::tools
