#include "tools/study/plots.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "tools/common/report.h"
#include "tools/study/document.h"

namespace nibblenet::tools {
namespace {

constexpr int width = 840;

/// Colours that stay apart for every kind of colour vision (Okabe and Ito), on white and on black. One for a method; a
/// simulation has its method's.
std::string_view colour_of(const Row& row) {
  static const std::map<std::string_view, std::string_view> colours = {{"linear", "#0072B2"},
                                                                       {"simulated-linear", "#0072B2"},
                                                                       {"simulated-linear-row", "#0072B2"},
                                                                       {"fp8-e4m3", "#CC79A7"},
                                                                       {"simulated-fp8", "#CC79A7"},
                                                                       {"fp8-e5m2", "#56B4E9"},
                                                                       {"dynamic-tree", "#D55E00"},
                                                                       {"simulated-dynamic-tree", "#D55E00"},
                                                                       {"stable-embedding", "#009E73"},
                                                                       {"simulated-stable-embedding", "#009E73"},
                                                                       {"stable-embedding-fp8", "#7F9F00"},
                                                                       {"nf4", "#E69F00"},
                                                                       {"fp4", "#9A7B4F"}};
  const auto found = colours.find(row.method);
  return found == colours.end() ? "#808080" : found->second;
}

/// gnuplot's filled point of a granularity; the number below is the same one, hollow.
int point_of(const Row& row) {
  const std::string_view kind = std::string_view(row.granularity).substr(0, row.granularity.find(':'));
  if (kind == "tensor") return 5;
  if (kind == "channel") return 7;
  if (kind == "row") return 9;
  if (kind == "block") return 11;
  if (kind == "tile") return 13;
  return 15;
}

bool has_other_sign(const Row& row) {
  const auto* scheme = row.parsed ? std::get_if<Scheme>(&*row.parsed) : nullptr;
  return scheme != nullptr && scheme->sign != traits_of(scheme->method).default_sign;
}

/// Everything of a scheme but its width: what one line of a plot has in common.
std::string label_of(const Row& row) {
  if (row.simulated()) return row.method + ", claimed bits";
  const Scheme& scheme = std::get<Scheme>(*row.parsed);
  std::string label = row.method + " " + row.granularity;
  if (traits_of(scheme.method).default_sign == ScaleSign::signed_max || has_other_sign(row))
    label += " " + row.scale_sign;
  if (scheme.scale == ScaleType::f16) label += " f16";
  if (scheme.zero_point) label += " zero-point";
  return label;
}

/// Hollow and dashed: simulated. Filled and dotted: the sign that is not the method's own.
std::string line_style(const Row& row) {
  return fmt::format("lc rgb '{}' lw 2 dt {} pt {} ps 1.1", colour_of(row),
                     row.simulated()       ? 2
                     : has_other_sign(row) ? 3
                                           : 1,
                     point_of(row) - (row.simulated() ? 1 : 0));
}

struct Series {
  std::string label;
  std::string style;
  std::vector<std::pair<double, double>> points;
};

/// One series for everything but the width, in the order of the rows. What has one width is set side by side.
template <class Value>
std::vector<Series> series_of(const std::vector<Row>& rows, Value value) {
  std::vector<Series> all;
  for (const Row& row : rows) {
    if (row.is_float()) continue;
    const std::string label = label_of(row);
    auto found = std::ranges::find(all, label, &Series::label);
    if (found == all.end()) found = all.insert(all.end(), {label, line_style(row), {}});
    found->points.emplace_back(row.bits, value(row));
  }
  const auto count = static_cast<double>(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    std::ranges::sort(all[i].points);
    const double shift = 0.5 * (static_cast<double>(i) + 0.5) / count - 0.25;
    for (auto& [bits, each] : all[i].points) bits += shift;
  }
  return all;
}

/// "$data << end … end", lines separated by `line`.
std::string data_block(const std::string& name, const std::string& lines) {
  return fmt::format("${} << end_of_data\n{}end_of_data\n", name, lines);
}

std::string data_of(const std::vector<Series>& all) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    std::string lines;
    for (const auto& [x, y] : all[i].points) lines += fmt::format("{:.4f} {:.8g}\n", x, y);
    text += data_block(fmt::format("series_{}", i), lines);
  }
  return text;
}

std::string curves_of(const std::vector<Series>& all) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i)
    text += fmt::format(", \\\n  $series_{} using 1:2 with linespoints {} notitle", i, all[i].style);
  return text;
}

/// A key below the panels, in two columns: as many lines as it takes, so that nothing covers anything.
struct Key {
  std::vector<std::pair<std::string, std::string>> entries;  ///< label and style; without style: text alone
  int columns = 2;

  int lines() const { return (static_cast<int>(entries.size()) + columns - 1) / columns; }
  int height() const { return 22 * lines() + 16; }

  /// Drawn as objects in pixels of the page, from the bottom up.
  std::string commands(int page_height, size_t first_label) const {
    std::string text;
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto index = static_cast<int>(i);
      const double y = (height() - 18 - 22.0 * (index % lines())) / page_height;
      const double x = (24.0 + (width - 48.0) / columns * (index / lines())) / width;
      const auto& [label, style] = entries[i];
      const double text_x = x + (style.empty() ? 0.0 : 44.0 / width);
      text +=
          fmt::format("set label {} '{}' at screen {:.5f}, screen {:.5f} left\n", first_label + i, label, text_x, y);
      if (style.empty()) continue;
      text += fmt::format(
          "set arrow {0} from screen {1:.5f}, screen {3:.5f} to screen {2:.5f}, screen {3:.5f} nohead {4}\n",
          first_label + i, x, x + 34.0 / width, y, style.substr(0, style.find(" pt ")));
      if (const size_t point = style.find(" pt "); point != std::string::npos)
        text += fmt::format("set label {} '' at screen {:.5f}, screen {:.5f} point {}{}\n", first_label + 500 + i,
                            x + 17.0 / width, y, style.substr(0, style.find(" lw ")), style.substr(point));
    }
    return text;
  }
};

Key key_of(const std::vector<Series>& all) {
  Key key;
  for (const Series& series : all) key.entries.emplace_back(series.label, series.style);
  return key;
}

/// Margins of a panel between two heights of the page, in pixels from its bottom.
std::string panel(int page_height, int bottom, int top) {
  return fmt::format(
      "set lmargin at screen {:.5f}\nset rmargin at screen {:.5f}\nset bmargin at screen {:.5f}\n"
      "set tmargin at screen {:.5f}\n",
      78.0 / width, (width - 20.0) / width, static_cast<double>(bottom) / page_height,
      static_cast<double>(top) / page_height);
}

constexpr std::string_view common =
    "set border 3 lw 1\nset tics nomirror out\nset grid lc rgb '#9aa4b0' lw 0.5 dt 3\nset key off\n"
    "set style fill transparent solid 0.18 noborder\n";

struct Range {
  double low;
  double high;
};

/// Percent, with a little room, never beyond 0 and 100.
Range accuracy_range(const std::vector<Row>& rows, bool zoomed) {
  const double reference = 100 * rows.front().accuracy;
  double low = 100, high = 0;
  for (const Row& row : rows) {
    const double value = 100 * row.accuracy;
    if (zoomed && value < reference - 3) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const Interval interval = wilson_interval(rows.front().correct, rows.front().images);
  if (zoomed) low = std::max(std::min(low, reference - 1), reference - 3);
  high = std::max(high, std::min(100 * interval.high, zoomed ? reference + 3 : 100.0));
  const double room = std::max(0.05 * (high - low), 0.1);
  return {std::max(0.0, low - room), std::min(100.0, high + room)};
}

std::string float_band(const Row& row, const Range& x) {
  const Interval interval = wilson_interval(row.correct, row.images);
  return data_block("band", fmt::format("{} {:.6f} {:.6f}\n{} {:.6f} {:.6f}\n", x.low, 100 * interval.low,
                                        100 * interval.high, x.high, 100 * interval.low, 100 * interval.high));
}

std::string float_curves(const Row& row) {
  return fmt::format(
      "$band using 1:2:3 with filledcurves lc rgb '#808080' notitle, \\\n"
      "  {:.6f} with lines lc rgb '#606870' lw 1.5 notitle",
      100 * row.accuracy);
}

const std::pair<std::string, std::string> float_entry = {"float, band: 95 % interval", "lc rgb '#606870' lw 1.5 dt 1"};

/// Two panels over one key: everything, and what lies close to float.
std::string accuracy_panels(const std::vector<Row>& rows, int height, int key_height, const std::string& setup,
                            const std::string& x_label, const std::string& curves, const std::string& close_up) {
  const Range all = accuracy_range(rows, false), close = accuracy_range(rows, true);
  const int top = height - 40, middle = key_height + (top - key_height) / 2;
  std::string text = std::string(common) + setup + "set ylabel 'accuracy in %'\n";
  text += "set multiplot\nset title 'all schemes' offset 0,-0.5\nset xlabel ''\nset format x ''\n" +
          panel(height, middle + 25, top);
  text += fmt::format("set yrange [{:.4f}:{:.4f}]\nplot {}\n", all.low, all.high, curves);
  text += fmt::format("set title 'close to float: the axis ends at {:.1f} %' offset 0,-0.5\n", close.low);
  text += "set xlabel '" + x_label + "'\nset format x '%g'\n" + panel(height, key_height + 60, middle - 20);
  text +=
      fmt::format("set yrange [{:.4f}:{:.4f}]\nplot {}{}\nunset multiplot\n", close.low, close.high, curves, close_up);
  return text;
}

constexpr const char* bits_axis = "set xrange [1.6:8.4]\nset xtics 2,1,8\n";

Plot accuracy_against_bits(const std::vector<Row>& rows) {
  const std::vector<Series> all = series_of(rows, [](const Row& row) { return 100 * row.accuracy; });
  Key key = key_of(all);
  key.entries.push_back(float_entry);
  const int height = 720 + key.height();
  return {"accuracy_bits",
          "Accuracy against bits a code. Hollow points on dashed lines are simulated: their bits are claimed. Points "
          "of one "
          "width are set side by side.",
          width, height,
          data_of(all) + float_band(rows.front(), {1.6, 8.4}) + key.commands(height, 1) +
              accuracy_panels(rows, height, key.height(), bits_axis, "bits a code (simulated: claimed)",
                              float_curves(rows.front()) + curves_of(all), "")};
}

Plot accuracy_against_size(const std::vector<Row>& rows) {
  std::vector<Series> all;
  double low = INFINITY, high = 0;
  for (const Row& row : rows) {
    if (!row.size) continue;
    const double megabytes = static_cast<double>(row.size->resident.total()) / 1e6;
    low = std::min(low, megabytes);
    high = std::max(high, megabytes);
    if (row.is_float()) continue;
    const std::string label = label_of(row);
    auto found = std::ranges::find(all, label, &Series::label);
    if (found == all.end()) found = all.insert(all.end(), {label, line_style(row), {}});
    found->points.emplace_back(megabytes, 100 * row.accuracy);
  }
  Key key = key_of(all);
  key.entries.push_back(float_entry);
  key.entries.emplace_back("front: none is smaller and better", "lc rgb '#606870' lw 1 dt 4");
  const std::vector<const Row*> front = pareto_front(rows);
  std::string front_data;
  for (size_t i = 0; i < front.size(); ++i) {
    front_data += fmt::format("{:.6f} {:.6f} {}\n", static_cast<double>(front[i]->size->resident.total()) / 1e6,
                              100 * front[i]->accuracy, i + 1);
    key.entries.emplace_back(fmt::format("{}:  {}", i + 1, front[i]->scheme), "");
  }
  const Range x{low / 1.1, high * 1.1};
  std::string curves = float_curves(rows.front());
  if (!front.empty()) curves += ", \\\n  $front using 1:2 with steps lc rgb '#606870' lw 1 dt 4 notitle";
  for (size_t i = 0; i < all.size(); ++i)
    curves += fmt::format(", \\\n  $series_{} using 1:2 with points {} notitle", i,
                          "lc rgb" + all[i].style.substr(6, 11) + all[i].style.substr(all[i].style.find("pt ")));
  const int height = 720 + key.height();
  const std::string axis =
      fmt::format("set logscale x 2\nset xrange [{:.6f}:{:.6f}]\nset xtics ({})\n", x.low, x.high,
                  "0.01,0.02,0.05,0.1,0.2,0.5,1,2,5,10,15,20,25,30,40,50,60,80,100,120,150,180,240");
  return {
      "accuracy_size",
      "Accuracy against megabytes resident, measured, on a logarithmic axis; the numbers name the front. Simulated "
      "schemes have no size and are not here.",
      width, height,
      data_of(all) + float_band(rows.front(), x) + data_block("front", front_data) + key.commands(height, 1) +
          accuracy_panels(rows, height, key.height(), axis, "MB resident (codes, scales and all that decoding needs)",
                          curves, front.empty() ? "" : ", \\\n  $front using 1:2:3 with labels offset 0,1 notitle")};
}

/// Bytes of one kind of code: bits and groups decide, not what the codes mean.
struct Bar {
  std::string label;
  int bits;
  ResidentSize size;
};

std::vector<Bar> bars_of(const std::vector<Row>& rows) {
  std::vector<Bar> bars;
  for (const Row& row : rows) {
    if (!row.packed()) continue;
    const Scheme& scheme = std::get<Scheme>(*row.parsed);
    std::string label = fmt::format("{} {}", row.bits, row.granularity);
    if (scheme.scale == ScaleType::f16) label += " f16";
    if (scheme.zero_point) label += " zero-point";
    if (std::ranges::find(bars, label, &Bar::label) == bars.end())
      bars.push_back({label, row.bits, row.size->resident});
  }
  std::ranges::stable_sort(bars, {}, &Bar::bits);
  return bars;
}

Plot bytes_against_bits(const std::vector<Row>& rows) {
  const std::vector<Bar> bars = bars_of(rows);
  std::string lines;
  double highest = 0;
  for (const Bar& bar : bars) {
    const ResidentSize& r = bar.size;
    const auto other = static_cast<double>(r.zero_points + r.codebooks + r.padding);
    const auto codes = static_cast<double>(r.codes), scales = static_cast<double>(r.scales),
               ids = static_cast<double>(r.block_ids);
    highest = std::max(highest, (codes + scales + ids + other) / 1e6);
    lines += fmt::format("\"{}\" {:.6f} {:.6f} {:.6f} {:.6f} {:.6f}\n", bar.label, codes / 1e6, scales / 1e6, ids / 1e6,
                         other / 1e6, (codes + scales + ids + other) / 1e6);
  }
  constexpr std::pair<const char*, const char*> parts[] = {{"codes", "#0072B2"},
                                                           {"scales", "#E69F00"},
                                                           {"block numbers (sorted)", "#009E73"},
                                                           {"zero points, codebooks, padding", "#CC79A7"}};
  Key key;
  std::string curves;
  for (int i = 0; i < 4; ++i) {
    key.entries.emplace_back(parts[i].first, fmt::format("lc rgb '{}' lw 9", parts[i].second));
    curves += fmt::format("{}$bars using {}{} lc rgb '{}' notitle", i == 0 ? "plot " : ", \\\n  ", i + 2,
                          i == 0 ? ":xtic(1)" : "", parts[i].second);
  }
  const bool crowded = bars.size() > 24;
  if (!crowded) curves += ", \\\n  $bars using 0:6:(sprintf('%.2f', $6)) with labels offset 0,0.6 notitle";
  const int height = 470 + key.height();
  return {
      "bytes_bits",
      "Resident bytes by bits and groups: codes shrink with the width, scales do not. Labels: bits and granularity.",
      width, height,
      data_block("bars", lines) + key.commands(height, 1) + std::string(common) +
          "set style data histograms\nset style histogram rowstacked\nset boxwidth 0.72\nset style fill solid 1 "
          "noborder\n" +
          fmt::format("set xtics rotate by {} right{}\nset grid noxtics\n", crowded ? 90 : 35,
                      crowded ? " font ',9'" : "") +
          "set ylabel 'MB resident, without biases'\nset title 'code and scale bytes'\n" +
          fmt::format("set yrange [0:{:.6f}]\nset xrange [-0.6:{:.1f}]\n", highest * 1.08,
                      static_cast<double>(bars.size()) - 0.4) +
          panel(height, key.height() + 120, height - 40) + curves + "\n"};
}

Plot error_against_bits(const std::vector<Row>& rows) {
  std::vector<Row> lossy;
  std::ranges::copy_if(rows, std::back_inserter(lossy),
                       [](const Row& row) { return !row.is_float() && row.error.mse > 0; });
  const std::vector<Series> all = series_of(lossy, [](const Row& row) { return row.error.mse; });
  const Key key = key_of(all);
  const int height = 460 + key.height();
  return {
      "error_bits",
      "Mean squared error of all weights against bits a code, on a logarithmic axis. Hollow points on dashed lines are "
      "simulated: their bits are claimed.",
      width, height,
      data_of(all) + key.commands(height, 1) + std::string(common) + bits_axis +
          "set logscale y\nset format y '10^{%L}'\nset ylabel 'mean squared error' \n"
          "set xlabel 'bits a code (simulated: claimed)'\nset title 'error of the weights'\n" +
          panel(height, key.height() + 60, height - 40) + "plot " + curves_of(all).substr(2) + "\n"};
}

}  // namespace

std::vector<Plot> make_plots(const std::vector<Row>& rows) {
  std::vector<Plot> plots;
  const bool any_packed = std::ranges::any_of(rows, &Row::packed);
  const bool any_lossy = std::ranges::any_of(rows, [](const Row& row) { return !row.is_float() && row.error.mse > 0; });
  if (rows.size() > 1) plots.push_back(accuracy_against_bits(rows));
  if (any_packed) plots.push_back(accuracy_against_size(rows));
  if (any_packed) plots.push_back(bytes_against_bits(rows));
  if (any_lossy) plots.push_back(error_against_bits(rows));
  return plots;
}

}  // namespace nibblenet::tools
