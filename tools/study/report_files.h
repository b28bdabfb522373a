#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine/io/json.h"
#include "tools/study/document.h"

namespace nibblenet::tools {

/// A plot by name: what it shows, and the SVG to put into a page.
struct Figure {
  std::string caption;
  std::string svg;
};
/// Plots by their file name.
using Figures = std::map<std::string, Figure>;

/// Markdown; plots are links to plots/<name>.svg.
std::string markdown(const Document& document, const Figures& figures);
/// One page that needs nothing beside it: style and plots are inside.
std::string html(const Document& document, const Figures& figures);
/// A line a scheme, the same figures as in JSON; empty where there is none.
std::string csv(const std::vector<Row>& rows);
/// {"setup": sweep.json's, "results": the lines of results.jsonl, float first, "fronts": schemes of
/// pareto_front()}
nlohmann::json report_json(const std::vector<Row>& rows, const nlohmann::json& setup);

/// report.md, report.html, report.csv and report.json in a folder. Throws IoError.
void write_report(const std::filesystem::path& folder, const std::vector<Row>& rows, const nlohmann::json& setup,
                  const Figures& figures);

}  // namespace nibblenet::tools
