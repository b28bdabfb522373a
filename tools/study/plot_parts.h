#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tools/study/row.h"

namespace nibblenet::tools {

/// Pixels of every plot from left to right.
inline constexpr int plot_width = 840;

/// How a series, or an entry of a key, is drawn. No dash: no line; no point: no point.
struct Style {
  std::string_view colour;
  int dash = 0;
  double line_width = 2;
  int point = 0;

  std::string line() const { return fmt::format("lc rgb '{}' lw {} dt {}", colour, line_width, dash); }
  std::string marks() const { return fmt::format("lc rgb '{}' pt {} ps 1", colour, point); }
};

/// Hollow and dashed: simulated. Filled and dotted: a variant of a method (the other sign, zero
/// points).
Style style_of(const Row& row);
/// A scheme without its width: what the points of one line have in common.
std::string label_of(const Row& row);

/// A series of points with its style.
struct Series {
  std::string label;
  Style style;
  std::vector<std::pair<double, double>> points;
};

/// One series for everything but the width, in the order of the rows; `point` gives x and y of a
/// row.
template <class Point>
std::vector<Series> series_of(const std::vector<const Row*>& rows, Point point) {
  std::vector<Series> all;
  for (const Row* row : rows) {
    const std::string label = label_of(*row);
    auto found = std::ranges::find(all, label, &Series::label);
    if (found == all.end()) found = all.insert(all.end(), {label, style_of(*row), {}});
    found->points.push_back(point(*row));
  }
  for (Series& series : all) std::ranges::sort(series.points);
  return all;
}

/// Series over bits. Points of one width are set side by side, or they would hide each other.
template <class Value>
std::vector<Series> series_by_bits(const std::vector<const Row*>& rows, Value value) {
  std::vector<Series> all =
      series_of(rows, [&](const Row& row) { return std::pair<double, double>(row.bits, value(row)); });
  const auto count = static_cast<double>(all.size());
  for (size_t i = 0; i < all.size(); ++i)
    for (auto& [bits, each] : all[i].points) bits += 0.7 * (static_cast<double>(i) + 0.5) / count - 0.35;
  return all;
}

/// Rows that meet a condition.
template <class Condition>
std::vector<const Row*> those(const std::vector<Row>& rows, Condition condition) {
  std::vector<const Row*> result;
  for (const Row& row : rows)
    if (std::invoke(condition, row)) result.push_back(&row);
  return result;
}

/// A data block of gnuplot's; every line of `lines` has its end.
std::string data_block(const std::string& name, const std::string& lines);
/// One block a series, $series_0 and on.
std::string data_of(const std::vector<Series>& all);
/// What draws them, behind a first curve: each starts with a comma.
std::string curves_of(const std::vector<Series>& all, bool with_lines = true);

/// A key below the panels, in two columns, or in one where a label needs the width: as many lines
/// as it takes, so that it covers nothing. Labels beyond that width are cut in the middle.
struct Key {
  std::vector<std::pair<std::string, Style>> entries;

  /// Their number, that of their lines, and pixels of the key.
  int columns() const {
    return std::ranges::any_of(entries, [](const auto& entry) { return entry.first.size() > 44; }) ? 1 : 2;
  }
  int lines() const { return (static_cast<int>(entries.size()) + columns() - 1) / columns(); }
  int height() const { return 22 * lines() + 16; }

  /// Drawn as objects in pixels of the page, from the bottom up.
  std::string commands(int page_height) const;
};

/// The key of a plot's series.
Key key_of(const std::vector<Series>& all, bool with_lines = true);

/// The label of a panel's y axis, at the left edge whatever the widths of its numbers.
std::string y_label(std::string_view text);

/// Margins of a panel between two heights of the page, in pixels from its bottom.
std::string panel(int page_height, int bottom, int top);

/// Border, tics and grid of every plot.
inline constexpr std::string_view plot_frame =
    "set border 3 lw 1\nset tics nomirror out\nset grid lc rgb '#9aa4b0' lw 0.5 dt 3\nset key off\n"
    "set style fill transparent solid 0.18 noborder\n";

}  // namespace nibblenet::tools
