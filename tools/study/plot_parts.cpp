#include "tools/study/plot_parts.h"

#include <array>

namespace nibblenet::tools {
namespace {

/// Whether it is a variant of its method: the other sign, or zero points.
bool is_variant(const Row& row) {
  const Scheme* scheme = row.scheme_of_all();
  return scheme != nullptr && (scheme->sign != traits_of(scheme->method).default_sign || scheme->zero_point);
}

/// Colours that stay apart for every kind of colour vision (after Okabe and Ito), on white and on
/// black. A simulation has its method's; a variant of a method has a shade of its own.
std::string_view colour_of(const Row& row) {
  struct Colours {
    std::string_view method;
    std::string_view own;
    std::string_view variant;
  };
  static constexpr std::array<Colours, 8> table = {{{"linear", "#0072B2", "#56B4E9"},
                                                    {"fp8-e4m3", "#CC79A7", "#CC79A7"},
                                                    {"fp8-e5m2", "#56B4E9", "#56B4E9"},
                                                    {"dynamic-tree", "#D55E00", "#8C510A"},
                                                    {"stable-embedding", "#009E73", "#01665E"},
                                                    {"stable-embedding-fp8", "#7F9F00", "#7F9F00"},
                                                    {"nf4", "#E69F00", "#E69F00"},
                                                    {"fp4", "#888888", "#888888"}}};
  if (row.recipe() != nullptr) return row.calibration.empty() ? "#56B4E9" : "#0072B2";
  if (row.method == "model") return "#D55E00";
  std::string method = row.method;
  if (row.simulated()) method = traits_of(counterparts(std::get<SimulatedScheme>(*row.parsed)).front().method).name;
  const auto found = std::ranges::find(table, method, &Colours::method);
  if (found == table.end()) return "#888888";
  return is_variant(row) ? found->variant : found->own;
}

/// gnuplot's filled point of a granularity; the number below is the same one, hollow.
int point_of(const Row& row) {
  if (row.recipe() != nullptr) return 7;
  const std::string_view kind = std::string_view(row.granularity).substr(0, row.granularity.find(':'));
  if (kind == "tensor") return 5;
  if (kind == "channel") return 7;
  if (kind == "row") return 9;
  if (kind == "block") return 11;
  if (kind == "tile") return 13;
  return 15;
}

}  // namespace

std::string label_of(const Row& row) {
  if (row.simulated()) {
    const size_t repairs = std::min(row.scheme.find('+'), row.scheme.size());
    return fmt::format("{}{} (claimed)", row.method, row.scheme.substr(repairs));
  }
  if (row.recipe() != nullptr) return row.calibration.empty() ? "pack" : "pack --calibrated";
  if (row.scheme_of_all() == nullptr) return "models made otherwise";
  const Scheme& scheme = *row.scheme_of_all();
  std::string label = row.method + " " + row.granularity;
  if (scheme.sign == ScaleSign::signed_max || traits_of(scheme.method).default_sign == ScaleSign::signed_max)
    label += " " + row.scale_sign;
  if (scheme.scale == ScaleType::f16) label += " f16";
  if (scheme.zero_point) label += " zero-point";
  return label;
}

Style style_of(const Row& row) {
  return {.colour = colour_of(row),
          .dash = row.simulated()   ? 2
                  : is_variant(row) ? 3
                                    : 1,
          .point = row.simulated() ? point_of(row) - 1 : point_of(row)};
}

std::string data_block(const std::string& name, const std::string& lines) {
  return fmt::format("${} << end_of_data\n{}end_of_data\n", name, lines);
}

std::string data_of(const std::vector<Series>& all) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    std::string lines;
    for (const auto& [x, y] : all[i].points) lines += fmt::format("{:.8g} {:.8g}\n", x, y);
    text += data_block(fmt::format("series_{}", i), lines);
  }
  return text;
}

std::string curves_of(const std::vector<Series>& all, bool with_lines) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    const Style& style = all[i].style;
    const std::string drawn = with_lines ? fmt::format("linespoints {} pt {} ps 1", style.line(), style.point)
                                         : fmt::format("points {}", style.marks());
    text += fmt::format(", \\\n  $series_{} using 1:2 with {} notitle", i, drawn);
  }
  return text;
}

std::string Key::commands(int page_height) const {
  std::string text;
  for (size_t i = 0; i < entries.size(); ++i) {
    const int line = static_cast<int>(i) % lines(), column = static_cast<int>(i) / lines();
    const double y = (height() - 18 - 22.0 * line) / page_height;
    const double x = (24.0 + (plot_width - 48.0) / columns() * column) / plot_width;
    auto [label, style] = entries[i];
    if (constexpr size_t most = 96; label.size() > most) label.replace(most / 2, label.size() - most + 1, "…");
    const bool sample = style.dash > 0 || style.point > 0;
    text += fmt::format("set label {} '{}' at screen {:.5f}, screen {:.5f} left noenhanced\n", i + 1, label,
                        x + (sample ? 44.0 / plot_width : 0.0), y);
    if (style.dash > 0)
      text += fmt::format(
          "set arrow {0} from screen {1:.5f}, screen {3:.5f} to screen {2:.5f}, screen {3:.5f} nohead {4}\n", i + 1, x,
          x + 34.0 / plot_width, y, style.line());
    if (style.point > 0)
      text += fmt::format("set label {} '' at screen {:.5f}, screen {:.5f} point {}\n", 500 + i + 1,
                          x + 17.0 / plot_width, y, style.marks());
  }
  return text;
}

Key key_of(const std::vector<Series>& all, bool with_lines) {
  Key key;
  for (const Series& series : all) {
    key.entries.emplace_back(series.label, series.style);
    if (!with_lines) key.entries.back().second.dash = 0;
  }
  return key;
}

std::string y_label(std::string_view text) {
  return fmt::format("set label 400 '{}' at screen {:.5f}, graph 0.5 center rotate by 90\n", text, 18.0 / plot_width);
}

std::string panel(int page_height, int bottom, int top) {
  return fmt::format(
      "set lmargin at screen {:.5f}\nset rmargin at screen {:.5f}\nset bmargin at screen {:.5f}\n"
      "set tmargin at screen {:.5f}\n",
      92.0 / plot_width, (plot_width - 16.0) / plot_width, static_cast<double>(bottom) / page_height,
      static_cast<double>(top) / page_height);
}

}  // namespace nibblenet::tools
