#include "tools/study/report_files.h"

#include <array>

#include "tools/common/aliases.h"
#include "tools/common/report.h"
#include "tools/study/folder.h"
#include "tools/study/front.h"

namespace nibblenet::tools {
namespace {

using nlohmann::json;

/// Paths and class names come from outside: none of them may end a cell or start a link.
std::string markdown_text(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '|' || c == '`' || c == '*' || c == '<' || c == '[' || c == ']' || c == '\\') result += '\\';
    result += c == '\n' || c == '\r' ? ' ' : c;
  }
  return result;
}

std::string markdown_row(const std::vector<std::string>& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) line += fmt::format(" {} |", markdown_text(cell));
  return line + "\n";
}

std::string markdown_table(const Table& table) {
  std::string text = fmt::format("**{}**\n\n{}|", markdown_text(table.caption), markdown_row(table.columns));
  for (size_t i = 0; i < table.columns.size(); ++i) text += i < table.left_columns ? "---|" : "---:|";
  text += "\n";
  for (const auto& row : table.rows) text += markdown_row(row);
  return text + "\n";
}

/// One figure of a row, as JSON has it; empty where that is null or missing.
std::string csv_field(const json& document, const std::string& pointer) {
  const json::json_pointer at(pointer);
  if (!document.contains(at) || document.at(at).is_null()) return {};
  const json& value = document.at(at);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

struct CsvColumn {
  const char* name;
  const char* pointer;
};
constexpr CsvColumn csv_columns[] = {{"scheme", "/scheme"},
                                     {"method", "/method"},
                                     {"bits", "/bits"},
                                     {"granularity", "/granularity"},
                                     {"scale_sign", "/scale_sign"},
                                     {"simulated", "/simulated"},
                                     {"images", "/images"},
                                     {"correct", "/correct"},
                                     {"accuracy", "/accuracy"},
                                     {"accuracy_low", "/accuracy_interval/0"},
                                     {"accuracy_high", "/accuracy_interval/1"},
                                     {"loss", "/loss"},
                                     {"only_float", "/only_float"},
                                     {"only_this", "/only_this"},
                                     {"mcnemar_p", "/mcnemar_p"},
                                     {"estimated_codes_bytes", "/size/estimated/codes"},
                                     {"estimated_scales_bytes", "/size/estimated/scales"},
                                     {"estimated_bytes", "/size/estimated/total"},
                                     {"file_bytes", "/size/file"},
                                     {"resident_bytes", "/size/resident/total"},
                                     {"bits_per_weight", "/size/bits_per_weight"},
                                     {"claimed_bytes", "/claimed_size/total"},
                                     {"values_in_a_row", "/need/distinct_values"},
                                     {"bits_needed", "/need/bits"},
                                     {"compressed_file_bytes", "/compressed_file"},
                                     {"encode_seconds", "/encode_seconds"},
                                     {"decode_seconds", "/decode_seconds"},
                                     {"calibration", "/calibration"},
                                     {"mse", "/mse"},
                                     {"mae", "/mae"},
                                     {"snr_db", "/snr_db"},
                                     {"images_per_second", "/images_per_second"}};

/// Beside them in a sweep with --validation.
constexpr CsvColumn validation_columns[] = {{"validation_images", "/validation/images"},
                                            {"validation_correct", "/validation/correct"},
                                            {"validation_accuracy", "/validation/accuracy"},
                                            {"validation_accuracy_low", "/validation/accuracy_interval/0"},
                                            {"validation_accuracy_high", "/validation/accuracy_interval/1"},
                                            {"validation_loss", "/validation/loss"}};

constexpr const char* style = R"css(
:root{--ink:#1b1f24;--paper:#fff;--soft:#5b6470;--line:#d8dde3;--stripe:#f5f7f9;--mark:#fff3d6}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--paper:#14171b;--soft:#9aa4b0;--line:#343b44;--stripe:#1b1f25;
--mark:#3a3016}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:72rem;padding:1rem 1rem 4rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper)}
h1{font-size:1.6rem;line-height:1.2}
h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--line);padding-bottom:.25rem}
p{max-width:44rem}
p,h1,h3,figcaption{overflow-wrap:anywhere}
figure{margin:1.5rem 0}
.plot{overflow-x:auto}
figure svg{display:block;width:100%;min-width:40rem;max-width:54rem;height:auto;color:var(--ink)}
figcaption{color:var(--soft);font-size:.9rem;max-width:44rem}
.scroll{overflow-x:auto;margin:0 0 1rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;white-space:nowrap}
h3{font-size:.95rem;margin:1.5rem 0 .3rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th{vertical-align:bottom;white-space:normal;min-width:4.5rem}
.text{text-align:left}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper);white-space:normal;overflow-wrap:anywhere;
min-width:min(12rem,40vw);max-width:min(24rem,40vw)}
tbody tr:nth-child(even) td{background:var(--stripe)}
tbody tr.simulated td{background:var(--mark)}
@media print{body{max-width:none;font-size:10pt}.scroll{overflow:visible}table{font-size:7pt}th,td{padding:.1rem .3rem}
h2,h3{break-after:avoid}figure svg{min-width:0;max-height:20cm}tr,figure{break-inside:avoid}th:first-child,td:first-child{position:static}}
)css";

std::string html_text(std::string_view text) {
  constexpr std::string_view special = "&<>\"";
  constexpr std::array<std::string_view, special.size()> escapes = {"&amp;", "&lt;", "&gt;", "&quot;"};
  std::string result;
  for (const char c : text) {
    const size_t found = special.find(c);
    result += found == special.npos ? std::string_view(&c, 1) : escapes[found];
  }
  return result;
}

std::string html_row(const std::vector<std::string>& cells, size_t left_columns, const char* element) {
  const bool simulated = cells.front().starts_with("simulated-");
  std::string line = simulated ? "<tr class=\"simulated\">" : "<tr>";
  for (size_t i = 0; i < cells.size(); ++i)
    line +=
        fmt::format("<{}{}>{}</{}>", element, i < left_columns ? " class=\"text\"" : "", html_text(cells[i]), element);
  return line + "</tr>\n";
}

std::string html_table(const Table& table) {
  std::string text = fmt::format("<h3>{}</h3>\n<div class=\"scroll\"><table>\n<thead>{}</thead>\n<tbody>\n",
                                 html_text(table.caption), html_row(table.columns, table.left_columns, "th"));
  for (const auto& row : table.rows) text += html_row(row, table.left_columns, "td");
  return text + "</tbody></table></div>\n";
}

}  // namespace

std::string markdown(const Document& document, const Figures& figures) {
  std::string text = fmt::format("# {}\n\n", document.title);
  for (const Section& section : document.sections) {
    text += fmt::format("## {}\n\n", section.heading);
    for (const std::string& paragraph : section.paragraphs) text += fmt::format("{}\n\n", markdown_text(paragraph));
    for (const std::string& name : section.plots)
      if (const auto figure = figures.find(name); figure != figures.end())
        text += fmt::format("![{}](plots/{}.svg)\n\n", markdown_text(figure->second.caption), name);
    for (const Table& table : section.tables) text += markdown_table(table);
  }
  return text;
}

std::string html(const Document& document, const Figures& figures) {
  const std::string title = html_text(document.title);
  std::string text = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n<title>{0}</title>\n<style>{1}</style>\n</head>\n"
      "<body>\n<h1>{0}</h1>\n",
      title, style);
  for (const Section& section : document.sections) {
    text += fmt::format("<section>\n<h2>{}</h2>\n", html_text(section.heading));
    for (const std::string& paragraph : section.paragraphs) text += fmt::format("<p>{}</p>\n", html_text(paragraph));
    for (const std::string& name : section.plots)
      if (const auto figure = figures.find(name); figure != figures.end())
        text += fmt::format("<figure>\n<div class=\"plot\">{}</div><figcaption>{}</figcaption>\n</figure>\n",
                            figure->second.svg, html_text(figure->second.caption));
    for (const Table& table : section.tables) text += html_table(table);
    text += "</section>\n";
  }
  return text + "</body>\n</html>\n";
}

std::string csv(const std::vector<Row>& rows) {
  std::vector<std::pair<std::string, std::string>> columns;  // names and pointers
  const auto add = [&](const std::string& column, const std::string& pointer) {
    for (const std::string& name : names_of_column(column)) columns.emplace_back(name, pointer);
  };
  for (const CsvColumn& column : csv_columns) add(column.name, column.pointer);
  if (rows.front().validation)
    for (const CsvColumn& column : validation_columns) add(column.name, column.pointer);
  const std::vector<ErrorFigures>& layers = rows.front().layers;
  for (size_t i = 0; i < layers.size(); ++i)
    for (const char* figure : {"mse", "mae", "snr_db"})
      add(fmt::format("{}:{}", figure, layers[i].layer), fmt::format("/layers/{}/{}", i, figure));
  for (size_t e = 0; e < ExponentCounts{}.counts.size(); ++e)
    add(fmt::format("exponent_{}", e), fmt::format("/exponent_counts/{}", e));
  for (const char* front : {"front_resident", "front_file"}) add(front, fmt::format("/{}", front));
  std::string text;
  for (const auto& [name, pointer] : columns) text += name + ",";
  text.back() = '\n';
  const auto resident = pareto_front(rows, Place::resident), file = pareto_front(rows, Place::file);
  for (const Row& row : rows) {
    json document = row.document;
    document["front_resident"] = std::ranges::find(resident, &row) != resident.end();
    document["front_file"] = std::ranges::find(file, &row) != file.end();
    for (const auto& [name, pointer] : columns) text += csv_field(document, pointer) + ",";
    text.back() = '\n';
  }
  return text;
}

json report_json(const std::vector<Row>& rows, const json& setup) {
  json document = {{"setup", setup}, {"results", json::array()}};
  for (const Row& row : rows) document["results"].push_back(row.document);
  for (const auto& [name, place] : {std::pair{"resident", Place::resident}, std::pair{"file", Place::file}}) {
    json& front = document["fronts"][name] = json::array();
    for (const Row* row : pareto_front(rows, place)) front.push_back(row->scheme);
  }
  add_both_names(document);
  return document;
}

void write_report(const std::filesystem::path& folder, const std::vector<Row>& rows, const json& setup,
                  const Figures& figures) {
  const Document document = make_document(rows, setup);
  write_text_file(folder / "report.md", markdown(document, figures));
  write_text_file(folder / "report.html", html(document, figures));
  write_text_file(folder / "report.csv", csv(rows));
  write_text_file(folder / "report.json", report_json(rows, setup).dump(2) + "\n");
}

}  // namespace nibblenet::tools
