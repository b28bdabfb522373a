#include "tools/study/document.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "tools/common/report.h"
#include "tools/study/cells.h"
#include "tools/study/front.h"

namespace nibblenet::tools {
namespace {

/// What the original notebooks print for their model, which was fine-tuned from ImageNet's
/// (docs/study.md).
struct NotebookClaim {
  std::string_view scheme;
  double accuracy;  ///< percent
};
constexpr std::array<NotebookClaim, 4> notebook_claims = {{{"simulated-dynamic-tree:8", 85.22},
                                                           {"simulated-dynamic-tree:6", 85.12},
                                                           {"simulated-dynamic-tree:4", 84.87},
                                                           {"simulated-dynamic-tree:3", 83.51}}};
constexpr std::string_view printed_maxima_megabytes = "3.02787075";

std::string mega(double bytes) { return fmt::format("{:.6f}", bytes / 1e6); }
std::string decibels(const std::optional<double>& snr) { return snr ? fmt::format("{:.2f}", *snr) : "∞"; }

std::string bits_text(const Row& row) {
  if (row.bits == 0) return fmt::format("{:.2f} on average", row.size->bits_per_weight);
  return row.simulated() ? fmt::format("{} claimed", row.bits) : std::to_string(row.bits);
}

std::string kind_text(const Row& row) { return row.is_float() ? "float" : row.simulated() ? "simulated" : "packed"; }

/// "78.05 % (−34 +17)", empty without a row.
std::string short_result(const Row* row) {
  return row == nullptr ? "–" : fmt::format("{} % ({})", percent(row->accuracy), pairs(*row));
}

Section measured_section(const std::vector<Row>& rows, const nlohmann::json& setup) {
  const auto text = [&](const char* key) { return setup.at(key).get<std::string>(); };
  const auto number = [&](const char* key) { return setup.at(key).get<int64_t>(); };
  const int64_t simulated = std::ranges::count_if(rows, &Row::simulated),
                packed = std::ranges::count_if(rows, &Row::packed);
  Section section{.heading = "What was measured"};
  section.paragraphs.push_back(fmt::format(
      "{} ({} weights; biases stay float32) on {} {} images of {} ({}), {} pixels wide after preparing, batches of "
      "{}, on {} ({} threads) in {}. {} packed and {} simulated schemes beside the float model.",
      text("model"), thousands(number("weights")), thousands(number("images")), text("split"), text("data"),
      text("data_description"), number("image_size"), number("batch"), text("device"), number("threads"),
      text("precision"), packed, simulated));
  if (const auto held_out = setup.value("validation_images", int64_t{0}); held_out > 0)
    section.paragraphs.push_back(fmt::format(
        "Beside them, every row has its accuracy on {} validation images, which are held out of the training images: "
        "who chooses a row by these learns from the {} images what the choice is worth.",
        thousands(held_out), text("split")));
  std::set<std::string> programs;
  for (const Row& row : rows) programs.insert(row.program);
  if (programs.size() > 1)
    section.paragraphs.push_back(fmt::format(
        "The rows come from {} builds of the program, which may compute or round differently.", programs.size()));
  section.paragraphs.emplace_back(
      "Packed: weights are stored as n-bit codes, written to a file, read back and run from the codes; sizes are "
      "measured. Simulated: what the original notebooks do, float32 in and float32 out; such weights have no size of "
      "their own, and their bits are a claim.");
  return section;
}

Section accuracy_section(const std::vector<Row>& rows) {
  Section section{.heading = "Accuracy", .plots = {"accuracy_bits"}};
  section.paragraphs.emplace_back(
      "Every scheme saw the same images as the float model. −a +b: images that only the float model, only this one "
      "had right. McNemar p: how likely a split at least as uneven is when both are equally good; below 0.05 the "
      "difference is more than chance. The interval is Wilson's, 95 %.");
  Table table{
      .caption = "Accuracy and paired comparison with float",
      .columns = {"scheme", "kind", "bits", "accuracy %", "95 % interval", "cross-entropy", "−a +b", "McNemar p"},
      .left_columns = 2};
  add_validation_columns(table, rows);
  for (const Row& row : rows) {
    const Interval interval = wilson_interval(row.correct, row.images);
    table.rows.push_back({row.scheme, kind_text(row), bits_text(row), percent(row.accuracy),
                          fmt::format("{} to {}", percent(interval.low), percent(interval.high)),
                          fmt::format("{:.5f}", row.loss), row.is_float() ? "" : pairs(row),
                          row.is_float() ? "" : p_text(row.mcnemar_p)});
    add_validation_cells(table, row);
  }
  section.tables.push_back(std::move(table));
  return section;
}

/// The claim beside what it takes, in words, for a width whose three rows are there.
std::string claim_in_words(const std::vector<Row>& rows, const Row& simulated) {
  const std::vector<Scheme> others = counterparts(std::get<SimulatedScheme>(*simulated.parsed));
  if (others.size() < 2 || !simulated.need || simulated.need->bits <= simulated.bits) return {};
  const Row* absolute = find_row(rows, to_string(SweepScheme(others[0])));
  const Row* with_sign = find_row(rows, to_string(SweepScheme(others[1])));
  if (absolute == nullptr || with_sign == nullptr) return {};
  const auto compared = [&](const Row& row) { return against_float(row, rows.front()); };
  return fmt::format(
      "{} claims {} bits, and a row of its values holds up to {} different ones, which takes {} bits: {}. True {}-bit "
      "codes of the same tree and the same absolute maxima: {}; with signed maxima, at no cost in size: {}.",
      simulated.scheme, simulated.bits, simulated.need->distinct, simulated.need->bits, compared(simulated),
      simulated.bits, compared(*absolute), compared(*with_sign));
}

std::string notebook_claim(const Row& row) {
  const auto found = std::ranges::find(notebook_claims, row.scheme, &NotebookClaim::scheme);
  return found == notebook_claims.end() ? "" : fmt::format("{:.2f} %", found->accuracy);
}

Section claims_section(const std::vector<Row>& rows) {
  Section section{.heading = "Claimed bits, and the bits that the values need"};
  section.paragraphs.emplace_back(
      "The original notebooks round weights and keep them in float32; the bits they name are not the bits it would "
      "take to store the result. A row (a run of the last dimension) shares one scale, so a code has to tell the "
      "different values of a row apart: ⌈log2⌉ of their largest number is the least width. Beside each claim stand "
      "codes that really have its bits. The notebooks printed 84.87 % at \"4 bits\" and 83.51 % at \"3 bits\", where "
      "its "
      "8 bits gave 85.22 %, on a model of its own. (Rows of the simulated stable embedding share several scales: its "
      "count is that of a code without a block number beside it.)");
  Table table{.caption = "Each simulation beside true codes of its claimed width; in brackets −a +b against float",
              .columns = {"simulation", "claimed bits", "values in a row", "bits needed", "simulated", "true n bits",
                          "values in a row", "true n bits, signed maxima", "the notebooks printed"}};
  for (const Row& row : rows) {
    if (!row.simulated()) continue;
    const std::vector<Scheme> others = counterparts(std::get<SimulatedScheme>(*row.parsed));
    const Row* same = others.empty() ? nullptr : find_row(rows, to_string(SweepScheme(others[0])));
    const Row* with_sign = others.size() < 2 ? nullptr : find_row(rows, to_string(SweepScheme(others[1])));
    table.rows.push_back({row.scheme, std::to_string(row.bits), row.need ? std::to_string(row.need->distinct) : "–",
                          row.need ? std::to_string(row.need->bits) : "–", short_result(&row), short_result(same),
                          same != nullptr && same->need ? std::to_string(same->need->distinct) : "–",
                          short_result(with_sign), notebook_claim(row)});
    if (row.bits > 4) continue;  // where the claim is far from what it takes
    if (const std::string words = claim_in_words(rows, row); !words.empty()) section.paragraphs.push_back(words);
  }
  if (table.rows.empty()) return {};
  section.tables.push_back(std::move(table));
  return section;
}

/// The cost of a float32 maximum for each row, and what the notebooks made of it.
std::string row_cost(const nlohmann::json& setup) {
  const auto rows = setup.at("row_groups").get<int64_t>(), channels = setup.at("channel_groups").get<int64_t>();
  const auto weights = setup.at("weights").get<int64_t>();
  return fmt::format(
      "What row costs: a row is a run of the last dimension, so a 3×3 kernel takes a float32 maximum for every 3 "
      "weights. This network has {} rows, {} MB of maxima or {:.3f} bits a weight, at any width. One scale an output "
      "channel takes {} of them, {} MB. (Counted with 31 bits each, the rows' maxima are {} MB: the notebooks printed "
      "{} "
      "MB for 781,386 maxima, which are 3.125544 MB at the 32 bits of a float32.)",
      thousands(rows), mega(4.0 * static_cast<double>(rows)),
      32.0 * static_cast<double>(rows) / static_cast<double>(weights), thousands(channels),
      mega(4.0 * static_cast<double>(channels)), fmt::format("{:.8f}", static_cast<double>(rows) * 31 / 8e6),
      printed_maxima_megabytes);
}

std::string front_in_words(const std::vector<Row>& rows) {
  std::string text;
  for (const Row* row : pareto_front(rows, Place::resident))
    text += fmt::format("{}{} ({:.2f} MB, {} %, p {}{})", text.empty() ? "" : ", ", row->scheme,
                        static_cast<double>(row->size->resident.total()) / 1e6, percent(row->accuracy),
                        row->mcnemar_p < 0.0001 ? "" : "= ", p_text(row->mcnemar_p));
  return text;
}

Section sizes_section(const std::vector<Row>& rows, const nlohmann::json& setup) {
  Section section{.heading = "Sizes", .plots = {"accuracy_size", "bytes_bits"}};
  section.paragraphs.emplace_back(
      "Estimated: weights × bits and groups × 32 bits, the notebooks' formula; MB = bits / 8,000,000. File: the "
      "file's length. Resident: what the backend handed out for weights and biases. Both are measured; differences "
      "are against the estimate, which knows no padding, biases, header, zero points or block numbers (the float "
      "model's file may hold half precision). Bits per weight count all that decoding needs. Simulated schemes have no "
      "measured size and stand in no column but their claim's.");
  section.paragraphs.push_back(row_cost(setup));
  if (const std::string front = front_in_words(rows); !front.empty())
    section.paragraphs.push_back(
        "On the front (none is at once smaller and right on more of these images, chance included; McNemar's p says "
        "which differences from float are more than chance): " +
        front + ".");
  Table table{.caption = "Sizes in MB",
              .columns = {"scheme", "codes", "scales", "estimated", "file", "difference", "resident", "difference",
                          "bits/weight"}};
  Table claims{.caption = "What the notebooks' formula claims for simulated schemes, in MB (never measured)",
               .columns = {"scheme", "claimed bits", "codes", "maxima", "claimed in all"}};
  for (const Row& row : rows) {
    if (row.claimed)
      claims.rows.push_back({row.scheme, std::to_string(row.bits), mega(row.claimed->codes), mega(row.claimed->scales),
                             mega(row.claimed->total())});
    if (!row.size) continue;
    const double estimated = row.size->estimated.total();
    const auto file = static_cast<double>(row.size->file), resident = static_cast<double>(row.size->resident.total());
    table.rows.push_back({row.scheme, mega(row.size->estimated.codes), mega(row.size->estimated.scales),
                          mega(estimated), mega(file), difference(file, estimated), mega(resident),
                          difference(resident, estimated), fmt::format("{:.3f}", row.size->bits_per_weight)});
  }
  section.tables.push_back(std::move(table));
  if (!claims.rows.empty()) section.tables.push_back(std::move(claims));
  return section;
}

/// One table of every layer's figure.
template <class Figure>
Table by_layer(const std::vector<Row>& rows, const std::string& caption, Figure figure) {
  Table table{.caption = caption, .columns = {"scheme"}};
  for (const ErrorFigures& layer : rows.front().layers) table.columns.push_back(layer.layer);
  table.columns.emplace_back("all");
  for (const Row& row : rows) {
    if (row.is_float() || row.layers.size() + 2 != table.columns.size()) continue;
    std::vector<std::string> cells = {row.scheme};
    for (const ErrorFigures& layer : row.layers) cells.push_back(figure(layer));
    cells.push_back(figure(row.error));
    table.rows.push_back(std::move(cells));
  }
  return table;
}

Section errors_section(const std::vector<Row>& rows) {
  Section section{.heading = "Errors of the weights", .plots = {"error_bits"}};
  section.paragraphs.emplace_back(
      "Between each weight and what it is stored as, by layer and in all: signal-to-noise ratio (10 log10 of the sum "
      "of w² over the sum of squared errors), mean squared and mean absolute error.");
  section.tables = {
      by_layer(rows, "Signal-to-noise ratio in dB", [](const ErrorFigures& e) { return decibels(e.snr_db); }),
      by_layer(rows, "Mean squared error", [](const ErrorFigures& e) { return fmt::format("{:.3e}", e.mse); }),
      by_layer(rows, "Mean absolute error", [](const ErrorFigures& e) { return fmt::format("{:.3e}", e.mae); })};
  return section;
}

Section exponents_section(const std::vector<Row>& rows) {
  std::map<int, const Row*, std::greater<>> widths;
  for (const Row& row : rows)
    if (!row.exponent_counts.empty()) widths.emplace(row.bits, &row);
  if (widths.empty()) return {};
  Section section{.heading = "Exponent counts of the dynamic tree"};
  section.paragraphs.emplace_back(
      "How many weights need e steps of ×10 until |w / row's maximum| ≥ 0.1. The last exponent of a width gathers "
      "all smaller ones, and zeros; it and the one before it become 0 in the notebooks' tree.");
  Table counts{.caption = "Weights with exponent e", .columns = {"bits"}};
  Table shares{.caption = "The same in percent", .columns = {"bits"}};
  for (int e = 0; e < widths.begin()->first; ++e)
    for (Table* table : {&counts, &shares}) table->columns.push_back(fmt::format("e = {}", e));
  for (const auto& [bits, row] : widths) {
    int64_t total = 0;
    for (const int64_t each : row->exponent_counts) total += each;
    std::vector<std::string> numbers = {std::to_string(bits)};
    std::vector<std::string> percents = {std::to_string(bits)};
    for (size_t e = 0; e + 1 < counts.columns.size(); ++e) {
      const bool used = e < row->exponent_counts.size();
      numbers.push_back(used ? thousands(row->exponent_counts[e]) : "");
      percents.push_back(used ? fmt::format("{:.4f}", 100.0 * static_cast<double>(row->exponent_counts[e]) /
                                                          static_cast<double>(std::max<int64_t>(total, 1)))
                              : "");
    }
    counts.rows.push_back(std::move(numbers));
    shares.rows.push_back(std::move(percents));
  }
  section.tables = {std::move(counts), std::move(shares)};
  return section;
}

Section speed_section(const std::vector<Row>& rows) {
  Section section{.heading = "Speed"};
  section.paragraphs.emplace_back(
      "Images a second of each evaluation, measured once: the only figures here that another run changes. Simulated "
      "weights run as float32.");
  Table table{.caption = "Evaluation", .columns = {"scheme", "images/s"}};
  for (const Row& row : rows) table.rows.push_back({row.scheme, fmt::format("{:.1f}", row.images_per_second)});
  section.tables.push_back(std::move(table));
  Table files{.caption =
                  "Compressed files, in seconds of processor time: making codes and file (of a model that was packed "
                  "already, the file), and reading it",
              .columns = {"packed by", "making s", "reading s", "MB of codes read a second and core"}};
  for (const Row& row : rows) {
    if (!row.compressed) continue;
    const ResidentSize& size = row.size->resident;
    files.rows.push_back({row.scheme, fmt::format("{:.2f}", row.compressed->encode_seconds),
                          fmt::format("{:.3f}", row.compressed->decode_seconds),
                          fmt::format("{:.0f}", static_cast<double>(size.codes + size.block_ids) / 1e6 /
                                                    std::max(row.compressed->decode_seconds, 1e-6))});
  }
  if (!files.rows.empty()) section.tables.push_back(std::move(files));
  return section;
}

}  // namespace

const Row* find_row(const std::vector<Row>& rows, const std::string& scheme) {
  const auto found = std::ranges::find(rows, scheme, &Row::scheme);
  return found == rows.end() ? nullptr : &*found;
}

void add_validation_columns(Table& table, const std::vector<Row>& rows) {
  if (!rows.front().validation) return;
  for (const char* name : {"validation accuracy %", "validation cross-entropy"}) table.columns.emplace_back(name);
}

void add_validation_cells(Table& table, const Row& row) {
  if (!row.validation) return;
  table.rows.back().push_back(percent(row.validation->accuracy));
  table.rows.back().push_back(fmt::format("{:.5f}", row.validation->loss));
}

Document make_document(const std::vector<Row>& rows, const nlohmann::json& setup) {
  Document document{.title = "nibblenet: what quantizing costs and buys"};
  for (Section& section : std::array{measured_section(rows, setup), frontier_section(rows, setup), claims_section(rows),
                                     accuracy_section(rows), sizes_section(rows, setup), errors_section(rows),
                                     exponents_section(rows), speed_section(rows)})
    if (!section.heading.empty()) document.sections.push_back(section);
  return document;
}

}  // namespace nibblenet::tools
