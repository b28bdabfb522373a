#include "tools/common/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace nibblenet::tools {
namespace {

/// A row of the table of sizes, whose schemes take `width` columns. Differences are measured minus
/// estimated, in percent of the estimate.
std::string table_row(const SizeRow& row, int64_t file, size_t width) {
  const double estimated = row.estimated.total();
  const auto resident = static_cast<double>(row.resident.total());
  return fmt::format("{:<14} {:<{}} {:>11} {:>8.3f} {:>13} {:>13} {:>11} {:>13} {:>11}\n", row.name, row.scheme, width,
                     thousands(row.weights), row.bits_per_weight(), thousands(std::llround(estimated)),
                     file > 0 ? thousands(file) : "-",
                     file > 0 ? difference(static_cast<double>(file), estimated) : "-", thousands(row.resident.total()),
                     difference(resident, estimated));
}

nlohmann::json row_json(const SizeRow& row, int64_t file) {
  nlohmann::json resident = row.resident;
  resident["total"] = row.resident.total();
  return {{"weights", row.weights},
          {"groups", row.groups},
          {"bits_per_weight", row.bits_per_weight()},
          {"estimated", estimated_json(row.estimated)},
          {"file", file},
          {"resident", resident}};
}

}  // namespace

std::string thousands(int64_t value) {
  std::string digits = std::to_string(value);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
    digits.insert(static_cast<size_t>(at), 1, ',');
  return digits;
}

std::string difference(double measured, double estimated) {
  return estimated > 0 ? fmt::format("{:+.3f} %", 100.0 * (measured - estimated) / estimated) : "-";
}

std::string megabytes(double bytes) { return fmt::format("{:.3f} MB ({:.3f} MiB)", bytes / 1e6, bytes / 1048576.0); }

std::string size_table(const std::vector<SizeRow>& rows, int64_t file_bytes, int64_t header_bytes) {
  const SizeRow total = sum(rows, "total");
  const ResidentSize& r = total.resident;
  const size_t width = longest(rows, 24, &SizeRow::scheme);
  std::string text =
      fmt::format("{:<14} {:<{}} {:>11} {:>8} {:>13} {:>13} {:>11} {:>13} {:>11}\n", "layer", "scheme", width,
                  "weights", "bits/w", "estimated B", "file B", "difference", "resident B", "difference");
  for (const SizeRow& row : rows) text += table_row(row, row.file, width);
  if (header_bytes > 0)
    text += fmt::format("{:<14} {:<{}} {:>11} {:>8} {:>13} {:>13}\n", "file header", "", width, "", "", "",
                        thousands(header_bytes));
  text += table_row(total, file_bytes, width);
  text += fmt::format("estimated (formula)   {}: codes {}, scales {}\n", megabytes(total.estimated.total()),
                      thousands(std::llround(total.estimated.codes)), thousands(std::llround(total.estimated.scales)));
  if (file_bytes > 0) text += fmt::format("file (measured)       {}\n", megabytes(static_cast<double>(file_bytes)));
  text += fmt::format("resident (measured)   {}: ", megabytes(static_cast<double>(r.total())));
  const std::vector<std::pair<std::string_view, int64_t>> parts = {
      {"codes", r.codes},         {"scales", r.scales},   {"zero points", r.zero_points}, {"codebooks", r.codebooks},
      {"block ids", r.block_ids}, {"padding", r.padding}, {"float weights", r.weights},   {"biases", r.biases}};
  std::string separator;
  for (const auto& [name, bytes] : parts) {
    if (bytes == 0) continue;
    text += fmt::format("{}{} {}", separator, name, thousands(bytes));
    separator = ", ";
  }
  return text + "\n";
}

nlohmann::json size_json(const std::vector<SizeRow>& rows, int64_t file_bytes, int64_t header_bytes) {
  nlohmann::json json = row_json(sum(rows, "total"), file_bytes);
  json["header"] = header_bytes;
  for (const SizeRow& row : rows) {
    nlohmann::json layer = row_json(row, row.file);
    layer["name"] = row.name;
    layer["scheme"] = row.scheme;
    json["layers"].push_back(std::move(layer));
  }
  return json;
}

nlohmann::json estimated_json(const EstimatedSize& size) {
  return {{"codes", size.codes}, {"scales", size.scales}, {"total", size.total()}};
}

Interval wilson_interval(int64_t successes, int64_t trials) {
  if (trials == 0) return {0.0, 1.0};
  constexpr double z = 1.959963984540054;  // two-sided 95 %
  const auto n = static_cast<double>(trials);
  const double p = static_cast<double>(successes) / n;
  const double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z / (1 + z * z / n) * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return {std::max(0.0, centre - half), std::min(1.0, centre + half)};
}

double mcnemar_p(int64_t only_a, int64_t only_b) {
  const int64_t discordant = only_a + only_b;
  const auto n = static_cast<double>(discordant);
  double tail = 0;  // P(X <= min) for X ~ Binomial(discordant, 1/2)
  for (int64_t k = 0; k <= std::min(only_a, only_b); ++k) {
    const auto x = static_cast<double>(k);
    tail += std::exp(std::lgamma(n + 1) - std::lgamma(x + 1) - std::lgamma(n - x + 1) - n * std::log(2.0));
  }
  return std::min(1.0, 2.0 * tail);
}

void print_precision(const PrecisionChoice& choice, const Network& network) {
  for (const std::string& line : precision_lines(choice, network)) fmt::print("{}\n", line);
}

nlohmann::json precision_json(const PrecisionChoice& choice, const Network& network) {
  nlohmann::json json = {
      {"precision", to_string(choice.precision)}, {"divergence", nullptr}, {"divergence_images", nullptr}};
  if (choice.divergence) {
    json["divergence"] = choice.divergence->nats;
    json["divergence_images"] = choice.divergence->images;
  }
  for (const Layer& layer : network.layers())
    if (layer.spec.has_parameters())
      json["layer_precisions"][layer.spec.name] = to_string(precision_of(network, layer));
  return json;
}

std::string routes_table(const std::vector<LayerRoute>& routes) {
  std::string table;
  for (const LayerRoute& each : routes) table += fmt::format("  {:<14} {}\n", each.layer, to_string(each.route));
  return table;
}

nlohmann::json to_json(const std::vector<LayerRoute>& routes) {
  nlohmann::json json = nlohmann::json::array();
  for (const auto& [layer, route] : routes)
    json.push_back({{"layer", layer},
                    {"kernel", route.kernel},
                    {"rotates", route.rotates},
                    {"expansion", route.expansion.empty() ? nlohmann::json() : nlohmann::json(route.expansion)},
                    {"pools", route.pools},
                    {"flattens", route.flattens}});
  return json;
}

}  // namespace nibblenet::tools
