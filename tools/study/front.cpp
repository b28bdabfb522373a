#include "tools/study/front.h"

#include <algorithm>

#include "tools/study/cells.h"

namespace nibblenet::tools {
namespace {

/// "resident, file", or what of it is true.
std::string fronts_of(const Row& row, const std::vector<const Row*>& resident, const std::vector<const Row*>& file) {
  std::string text;
  if (std::ranges::find(resident, &row) != resident.end()) text = "resident";
  if (std::ranges::find(file, &row) != file.end()) text += text.empty() ? "file" : ", file";
  return text;
}

}  // namespace

int64_t stored_bytes(const Row& row, Place place) {
  return place == Place::resident ? row.size->resident.total() : row.smallest_file();
}

std::vector<const Row*> pareto_front(const std::vector<Row>& rows, Place place) {
  std::vector<const Row*> sorted, front;
  for (const Row& row : rows)
    if (row.packed()) sorted.push_back(&row);
  std::ranges::stable_sort(sorted, [&](const Row* a, const Row* b) {
    const int64_t x = stored_bytes(*a, place), y = stored_bytes(*b, place);
    return x != y ? x < y : a->correct > b->correct;
  });
  for (const Row* row : sorted)
    if (front.empty() || row->correct > front.back()->correct) front.push_back(row);
  return front;
}

Section frontier_section(const std::vector<Row>& rows, const nlohmann::json& setup) {
  const bool any = std::ranges::any_of(rows, [](const Row& row) { return row.compressed.has_value(); });
  if (!any) return {};
  Section section{.heading = "Accuracy per byte", .plots = {"accuracy_file", "loss_resident", "loss_file"}};
  section.paragraphs.emplace_back(
      "What pack does with its own flags, and models that were made otherwise (model NAME; their layers' errors below "
      "are distances from the float model). Resident: bytes on the device while the network runs. File: packed codes "
      "as they are; compressed: the same codes entropy-coded, so that accuracy and resident size are the same. Times "
      "smaller: float32 weights against the smallest file. Front: no other row is at once smaller, resident or "
      "in its smallest file, and right on more of these images: p says which differences from float are more than "
      "chance.");
  const auto calibrated = std::ranges::find_if(rows, [](const Row& row) { return !row.calibration.empty(); });
  if (calibrated != rows.end())
    section.paragraphs.push_back(
        fmt::format("Calibration of the rows with --calibrated: {}.", calibrated->calibration));
  const double float_bytes = 4.0 * static_cast<double>(setup.at("weights").get<int64_t>());
  const auto resident = pareto_front(rows, Place::resident), file = pareto_front(rows, Place::file);
  Table table{.caption = "Accuracy and bytes of packed models",
              .columns = {"packed by", "bits/weight", "resident MB", "file MB", "compressed MB", "times smaller",
                          "accuracy %", "cross-entropy", "−a +b", "McNemar p", "front"}};
  add_validation_columns(table, rows);
  for (const Row& row : rows) {
    if (!row.size) continue;
    const auto megabytes = [](int64_t bytes) { return fmt::format("{:.3f}", static_cast<double>(bytes) / 1e6); };
    table.rows.push_back(
        {row.scheme, fmt::format("{:.3f}", row.size->bits_per_weight), megabytes(row.size->resident.total()),
         megabytes(row.size->file), row.compressed ? megabytes(row.compressed->file) : "",
         fmt::format("{:.1f}", float_bytes / static_cast<double>(std::max<int64_t>(row.smallest_file(), 1))),
         percent(row.accuracy), fmt::format("{:.5f}", row.loss), row.is_float() ? "" : pairs(row),
         row.is_float() ? "" : p_text(row.mcnemar_p), fronts_of(row, resident, file)});
    add_validation_cells(table, row);
  }
  section.tables.push_back(std::move(table));
  return section;
}

}  // namespace nibblenet::tools
