#include "tools/study/plots.h"

#include <algorithm>
#include <cmath>

#include "tools/common/report.h"
#include "tools/study/front.h"
#include "tools/study/plot_parts.h"

namespace nibblenet::tools {
namespace {

struct AxisRange {
  double low;
  double high;
};

/// Percent, with a little room, above for the front's numbers too; never beyond 0 and 100.
AxisRange accuracy_range(const std::vector<Row>& rows, bool zoomed) {
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
  return {std::max(0.0, low - room), std::min(100.0, high + 2 * room)};
}

constexpr Style float_style{.colour = "#606870", .dash = 1, .line_width = 1.5};
constexpr Style front_style{.colour = "#606870", .dash = 4, .line_width = 1};

void add_float(Key& key) { key.entries.emplace_back("float, band: 95 % interval", float_style); }

std::string float_band(const Row& row, const AxisRange& x) {
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

/// Two panels over one key: everything, and what lies close to float.
std::string accuracy_panels(const std::vector<Row>& rows, int height, const Key& key, const std::string& setup,
                            const std::string& x_label, const std::string& curves, const std::string& close_up) {
  const AxisRange all = accuracy_range(rows, false), close = accuracy_range(rows, true);
  const int top = height - 44, middle = key.height() + (top - key.height()) / 2;
  std::string text = std::string(plot_frame) + setup + y_label("accuracy in %");
  text += "set multiplot\nset title 'all schemes' offset 0,-0.5\nset xlabel ''\nset format x ''\n" +
          panel(height, middle + 30, top);
  text += fmt::format("set yrange [{:.4f}:{:.4f}]\nplot {}\n", all.low, all.high, curves);
  text += fmt::format(
      "set title 'close to float: the axis starts at {:.1f} %, what lies below is cut off' offset 0,-0.5\n", close.low);
  text += key.commands(height);  // once: each panel draws what is set
  text += "set xlabel '" + x_label + "'\nset format x '%g'\n" + panel(height, key.height() + 70, middle - 15);
  text +=
      fmt::format("set yrange [{:.4f}:{:.4f}]\nplot {}{}\nunset multiplot\n", close.low, close.high, curves, close_up);
  return text;
}

bool has_one_width(const Row& row) { return !row.is_float() && row.bits > 0; }

constexpr const char* bits_axis = "set xrange [1.55:8.45]\nset xtics 2,1,8\n";

Plot accuracy_against_bits(const std::vector<Row>& rows) {
  const auto quantized = those(rows, has_one_width);
  const std::vector<Series> all = series_by_bits(quantized, [](const Row& row) { return 100 * row.accuracy; });
  Key key = key_of(all);
  add_float(key);
  const int height = 740 + key.height();
  return {"accuracy_bits",
          "Accuracy against bits a code. Hollow points on dashed lines are simulated: their bits are claimed. Points "
          "of one "
          "width are set side by side.",
          plot_width, height,
          data_of(all) + float_band(rows.front(), {1.55, 8.45}) +
              accuracy_panels(rows, height, key, bits_axis, "bits a code (simulated: claimed)",
                              float_curves(rows.front()) + curves_of(all), "")};
}

double megabytes(const Row& row, Place place) { return static_cast<double>(stored_bytes(row, place)) / 1e6; }

/// From the smallest to the float model, on a logarithmic axis.
struct MegabyteAxis {
  AxisRange range{INFINITY, 0};
  std::string commands;

  MegabyteAxis(const std::vector<Row>& rows, Place place) {
    for (const Row* row : those(rows, [](const Row& each) { return each.size.has_value(); })) {
      range.low = std::min(range.low, megabytes(*row, place) / 1.1);
      range.high = std::max(range.high, megabytes(*row, place) * 1.1);
    }
    std::string tics;
    double last = 0;
    for (const double tic : {0.01, 0.02, 0.05, 0.1,  0.2,  0.5,  1.0,  2.0,   3.0,   5.0,   7.0,   10.0, 15.0,
                             20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 120.0, 150.0, 180.0, 240.0}) {
      const double pixels = plot_width * std::log(tic / last) / std::log(range.high / range.low);
      if (pixels < 60) continue;  // their labels would touch
      last = tic;
      tics += fmt::format("{}{}", tics.empty() ? "" : ",", tic);
    }
    commands =
        fmt::format("set logscale x 2\nset xrange [{:.6f}:{:.6f}]\nset xtics ({})\n", range.low, range.high, tics);
  }
};

std::string title_of(Place place) {
  return place == Place::resident ? "MB resident (codes, scales and all that decoding needs)"
                                  : "MB in the file (the smallest that was measured)";
}

/// The front's rows by number in the key. Returns their points, with the numbers.
template <class Value>
std::string add_front(Key& key, const std::vector<Row>& rows, Place place, Value value) {
  key.entries.emplace_back("front: none is smaller and more accurate", front_style);
  std::string points;
  const std::vector<const Row*> front = pareto_front(rows, place);
  for (size_t i = 0; i < front.size(); ++i) {
    points += fmt::format("{:.6f} {:.6f} {}\n", megabytes(*front[i], place), value(*front[i]), i + 1);
    key.entries.emplace_back(fmt::format("{}:  {}", i + 1, front[i]->scheme), Style{});
  }
  return data_block("front", points);
}

Plot accuracy_against_size(const std::vector<Row>& rows, Place place) {
  const auto value = [](const Row& row) { return 100 * row.accuracy; };
  const std::vector<Series> all = series_of(those(rows, &Row::packed), [&](const Row& row) {
    return std::pair<double, double>(megabytes(row, place), value(row));
  });
  Key key = key_of(all, false);
  add_float(key);
  const std::string front = add_front(key, rows, place, value);
  const MegabyteAxis axis(rows, place);
  const std::string curves = float_curves(rows.front()) +
                             fmt::format(", \\\n  $front using 1:2 with steps {} notitle", front_style.line()) +
                             curves_of(all, false);
  const int height = 740 + key.height();
  return {place == Place::resident ? "accuracy_size" : "accuracy_file",
          fmt::format("Accuracy against megabytes {}, measured, on a logarithmic axis; the numbers name the front. "
                      "Simulated schemes have no size and are not here.",
                      place == Place::resident ? "resident" : "in the file"),
          plot_width, height,
          data_of(all) + float_band(rows.front(), axis.range) + front +
              accuracy_panels(rows, height, key, axis.commands, title_of(place), curves,
                              ", \\\n  $front using 1:2:3 with labels offset 0,1 notitle")};
}

/// The loss tells two rows apart that accuracy cannot, on the same number of images.
Plot loss_against_size(const std::vector<Row>& rows, Place place) {
  constexpr double shown_above_float = 0.1;
  const auto value = [](const Row& row) { return row.loss; };
  const std::vector<Series> all = series_of(those(rows, &Row::packed), [&](const Row& row) {
    return std::pair<double, double>(megabytes(row, place), value(row));
  });
  Key key = key_of(all, false);
  key.entries.emplace_back("float", float_style);
  const std::string front = add_front(key, rows, place, value);
  const MegabyteAxis axis(rows, place);
  const double expected = rows.front().loss, high = expected + shown_above_float;
  double low = expected;
  for (const Row* row : those(rows, &Row::packed)) low = std::min(low, row->loss);
  const int height = 480 + key.height();
  return {place == Place::resident ? "loss_resident" : "loss_file",
          fmt::format("Cross-entropy against megabytes {} on a logarithmic axis; what lies more than {} above float is "
                      "cut off. The numbers name the front of accuracy.",
                      place == Place::resident ? "resident" : "in the file", shown_above_float),
          plot_width, height,
          data_of(all) + front + key.commands(height) + std::string(plot_frame) + axis.commands +
              y_label("cross-entropy") +
              fmt::format("set yrange [{:.6f}:{:.6f}]\nset xlabel '{}'\n", low - 0.05 * (high - low), high,
                          title_of(place)) +
              "set title 'loss per byte'\n" + panel(height, key.height() + 70, height - 44) +
              fmt::format("plot {:.6f} with lines {} notitle{}, \\\n  $front using 1:2:3 with labels offset 0,1 "
                          "notitle\n",
                          expected, float_style.line(), curves_of(all, false))};
}

/// Bytes of one kind of code: they depend on bits and groups, not on what the codes mean.
struct Bar {
  std::string label;
  int bits;
  ResidentSize size;
};

std::vector<Bar> bars_of(const std::vector<Row>& rows) {
  std::vector<Bar> bars;
  for (const Row& row : rows) {
    if (row.scheme_of_all() == nullptr) continue;
    const Scheme& scheme = *row.scheme_of_all();
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
  size_t longest = 0;
  for (const Bar& bar : bars) {
    longest = std::max(longest, bar.label.size());
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
    key.entries.emplace_back(parts[i].first, Style{.colour = parts[i].second, .dash = 1, .line_width = 9});
    curves += fmt::format("{}$bars using {}{} lc rgb '{}' notitle", i == 0 ? "plot " : ", \\\n  ", i + 2,
                          i == 0 ? ":xtic(1)" : "", parts[i].second);
  }
  const bool crowded = bars.size() > 24;
  if (!crowded) curves += ", \\\n  $bars using 0:6:(sprintf('%.2f', $6)) with labels offset 0,0.6 notitle";
  const int room = 30 + static_cast<int>(longest) * (crowded ? 6 : 5);  // for the labels, as they are turned
  const int height = 360 + room + key.height();
  return {
      "bytes_bits",
      "Resident bytes by bits and groups: codes shrink with the width, scales do not. Labels: bits and granularity.",
      plot_width, height,
      data_block("bars", lines) + key.commands(height) + std::string(plot_frame) +
          "set style data histograms\nset style histogram rowstacked\nset boxwidth 0.72\nset style fill solid 1 "
          "noborder\n" +
          fmt::format("set xtics rotate by {} right{}\nset grid noxtics\n", crowded ? 90 : 35,
                      crowded ? " font ',9'" : "") +
          y_label("MB resident, without biases") + "set title 'code and scale bytes'\n" +
          fmt::format("set yrange [0:{:.6f}]\nset xrange [-0.6:{:.1f}]\n", highest * 1.08,
                      static_cast<double>(bars.size()) - 0.4) +
          panel(height, key.height() + room, height - 44) + curves + "\n"};
}

Plot error_against_bits(const std::vector<Row>& rows) {
  const auto lossy = those(rows, [](const Row& row) { return has_one_width(row) && row.error.mse > 0; });
  const std::vector<Series> all = series_by_bits(lossy, [](const Row& row) { return row.error.mse; });
  const Key key = key_of(all);
  const int height = 480 + key.height();
  return {
      "error_bits",
      "Mean squared error of all weights against bits a code, on a logarithmic axis. Hollow points on dashed lines are "
      "simulated: their bits are claimed.",
      plot_width, height,
      data_of(all) + key.commands(height) + std::string(plot_frame) + bits_axis + y_label("mean squared error") +
          "set logscale y\nset format y '10^{%L}'\nset xlabel 'bits a code (simulated: claimed)'\nset title 'error of "
          "the weights'\n" +
          panel(height, key.height() + 70, height - 44) + "plot " + curves_of(all).substr(2) + "\n"};
}

}  // namespace

std::vector<Plot> make_plots(const std::vector<Row>& rows) {
  std::vector<Plot> plots;
  const auto any = [&](auto condition) { return std::ranges::any_of(rows, condition); };
  const bool any_lossy = any([](const Row& row) { return has_one_width(row) && row.error.mse > 0; });
  if (any(has_one_width)) plots.push_back(accuracy_against_bits(rows));
  if (any(&Row::packed)) plots.push_back(accuracy_against_size(rows, Place::resident));
  if (any([](const Row& row) { return row.compressed.has_value(); })) {
    plots.push_back(accuracy_against_size(rows, Place::file));
    plots.push_back(loss_against_size(rows, Place::resident));
    plots.push_back(loss_against_size(rows, Place::file));
  }
  if (any(&Row::scheme_of_all)) plots.push_back(bytes_against_bits(rows));
  if (any_lossy) plots.push_back(error_against_bits(rows));
  return plots;
}

}  // namespace nibblenet::tools
