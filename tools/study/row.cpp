#include "tools/study/row.h"

#include <cmath>

#include "tools/common/aliases.h"
#include "tools/common/report.h"

namespace nibblenet::tools {
namespace {

using nlohmann::json;

Naming naming_of(const SweepScheme& scheme) {
  Naming naming{.scheme = to_string(scheme)};
  if (const auto* packed = std::get_if<Scheme>(&scheme)) {
    naming.method = traits_of(packed->method).name;
    naming.bits = packed->bits;
    naming.granularity = to_string(packed->granularity);
    if (!packed->zero_point) naming.scale_sign = to_string(packed->sign);
    return naming;
  }
  if (std::holds_alternative<Recipe>(scheme) || std::holds_alternative<ModelFile>(scheme)) {
    naming.method = std::holds_alternative<Recipe>(scheme) ? "pack" : "model";
    return naming;
  }
  const auto& simulated = std::get<SimulatedScheme>(scheme);
  naming.method = simulation_table()[static_cast<size_t>(simulated.simulation)].name;
  naming.bits = simulated.bits;
  const SimulationForm& form = form_of(simulated.simulation);
  naming.granularity = form.groups;
  if (form.maxima) naming.scale_sign = to_string(ScaleSign::absolute);
  return naming;
}

Naming naming_of(Precision precision) {
  const std::string name(to_string(precision));
  return {.scheme = name, .method = name, .bits = static_cast<int>(8 * bytes_of(precision))};
}

json text_or_null(const std::string& text) { return text.empty() ? json() : json(text); }
json bits_or_null(int bits) { return bits == 0 ? json() : json(bits); }

json error_json(const QuantizationError& error) {
  const double snr = error.snr_db();
  return {{"weights", error.weights},
          {"mse", error.mse()},
          {"mae", error.mae()},
          {"snr_db", std::isfinite(snr) ? json(snr) : json()}};
}

json compressed_json(const std::optional<CompressedFile>& file) {
  if (!file) return {{"compressed_file", json()}, {"encode_seconds", json()}, {"decode_seconds", json()}};
  return {{"compressed_file", file->file},
          {"encode_seconds", file->encode_seconds},
          {"decode_seconds", file->decode_seconds}};
}

json validation_json(const std::optional<Evaluation>& evaluation) {
  if (!evaluation) return nullptr;
  const Interval interval = wilson_interval(evaluation->correct, evaluation->images);
  return {{"images", evaluation->images},
          {"correct", evaluation->correct},
          {"accuracy", evaluation->accuracy()},
          {"accuracy_interval", {interval.low, interval.high}},
          {"loss", evaluation->loss}};
}

json packed_json(const Scheme& scheme) {
  return {{"scale_type", to_string(scheme.scale)}, {"zero_point", scheme.zero_point}};
}

// Reading: every figure is checked for its type and range, so that a report shows only measured
// figures.

[[noreturn]] void refuse(const std::string& what) { fail<FormatError>("not a result of a sweep: {}", what); }

double finite(const json& object, const char* key) {
  const double value = object.at(key).get<double>();
  if (!std::isfinite(value)) refuse(fmt::format("{} is not finite", key));
  return value;
}

int64_t count(const json& value, std::string_view what) {
  constexpr int64_t largest = 1'000'000'000'000'000;  // sums of these still fit
  const bool fits = value.is_number_integer() && value.get<int64_t>() >= 0 && value.get<int64_t>() <= largest;
  if (!fits) refuse(fmt::format("{} is not a count", what));
  return value.get<int64_t>();
}

int64_t count(const json& object, const char* key) { return count(object.at(key), std::string_view(key)); }

ErrorFigures error_of(const json& object, std::string layer) {
  ErrorFigures figures{std::move(layer), finite(object, "mse"), finite(object, "mae"), std::nullopt};
  if (!object.at("snr_db").is_null()) figures.snr_db = finite(object, "snr_db");
  return figures;
}

EstimatedSize estimated_of(const json& object) { return {finite(object, "codes"), finite(object, "scales")}; }

SizeFigures size_of(const json& object) {
  SizeFigures size;
  size.estimated = estimated_of(object.at("estimated"));
  size.groups = count(object, "groups");
  size.file = count(object, "file");
  const json& resident = object.at("resident");
  for (const auto& [part, bytes] : resident.items()) count(bytes, part);
  size.resident = resident.get<ResidentSize>();
  size.bits_per_weight = finite(object, "bits_per_weight");
  return size;
}

void take_naming(Row& row) {
  const std::string text = row.document.at("scheme").get<std::string>();
  Naming naming;
  if (text == to_string(Precision::float32) || text == to_string(Precision::float16)) {
    naming = naming_of(text == to_string(Precision::float32) ? Precision::float32 : Precision::float16);
  } else {
    row.parsed = parse_sweep_scheme(text);
    naming = naming_of(*row.parsed);
    if (row.recipe() != nullptr) row.document["scheme"] = naming.scheme;  // in the flags' names of today
  }
  const json& from = row.document;
  if (from.at("scheme") != naming.scheme || from.at("method") != naming.method ||
      from.at("bits") != bits_or_null(naming.bits) || from.at("granularity") != text_or_null(naming.granularity) ||
      from.at("scale_sign") != text_or_null(naming.scale_sign) || from.at("simulated") != row.simulated())
    refuse(fmt::format("scheme {} disagrees with the method or bits", naming.scheme));
  static_cast<Naming&>(row) = naming;
}

void expect_accuracy(int64_t images, int64_t correct, double accuracy) {
  if (images == 0 || correct > images) refuse("images and correct do not fit");
  if (std::abs(accuracy * static_cast<double>(images) - static_cast<double>(correct)) > 0.5)
    refuse("accuracy is not correct / images");
}

void take_accuracy(Row& row) {
  const json& from = row.document;
  row.images = count(from, "images");
  row.correct = count(from, "correct");
  row.accuracy = finite(from, "accuracy");
  row.loss = finite(from, "loss");
  row.only_float = count(from, "only_float");
  row.only_this = count(from, "only_this");
  row.mcnemar_p = finite(from, "mcnemar_p");
  row.images_per_second = finite(from, "images_per_second");
  expect_accuracy(row.images, row.correct, row.accuracy);
}

/// Rows without --validation, and all older ones, have null or nothing there.
void take_validation(Row& row) {
  const json from = row.document.value("validation", json());
  if (from.is_null()) return;
  row.validation = {.images = count(from, "images"),
                    .correct = count(from, "correct"),
                    .accuracy = finite(from, "accuracy"),
                    .loss = finite(from, "loss")};
  expect_accuracy(row.validation->images, row.validation->correct, row.validation->accuracy);
}

/// Older rows have none of these keys.
void take_packing(Row& row) {
  const auto text = [&](const char* key) {
    const json value = row.document.value(key, json());
    return value.is_null() ? std::string() : value.get<std::string>();
  };
  row.calibration = text("calibration");
  row.checksum = text("checksum");
  row.program = text("program");
  const bool either = row.recipe() != nullptr || row.method == "model";
  if (row.document.value("compressed_file", json()).is_null() == either)
    refuse("of recipes and model files, and of them alone, the compressed size is known");
  if (!either) return;
  row.compressed = {.file = count(row.document, "compressed_file"),
                    .encode_seconds = finite(row.document, "encode_seconds"),
                    .decode_seconds = finite(row.document, "decode_seconds")};
}

void take_weights(Row& row) {
  const json& from = row.document;
  row.error = error_of(from, "all");
  for (const json& layer : from.at("layers")) {
    const auto name = layer.at("name").get<std::string>();
    row.layers.push_back(error_of(layer, name));
  }
  take_packing(row);
  if (row.simulated()) {
    if (!from.at("size").is_null()) refuse("simulated weights have no size");
    row.claimed = estimated_of(from.at("claimed_size"));
  } else {
    row.size = size_of(from.at("size"));
  }
  if (const json& need = from.at("need"); !need.is_null())
    row.need = ValueNeed{count(need, "distinct_values"), static_cast<int>(count(need, "bits"))};
  if (const json& counts = from.at("exponent_counts"); !counts.is_null())
    for (const json& each : counts) row.exponent_counts.push_back(count(each, std::string_view("exponent_counts")));
  if (row.exponent_counts.size() > ExponentCounts{}.counts.size()) refuse("too many exponents");
}

}  // namespace

std::vector<uint8_t> right_ones(const Evaluation& evaluation) {
  std::vector<uint8_t> right(static_cast<size_t>(evaluation.images));
  for (int64_t i = 0; i < evaluation.images; ++i)
    right[static_cast<size_t>(i)] = evaluation.predicted(i) == evaluation.labels[static_cast<size_t>(i)] ? 1 : 0;
  return right;
}

json to_json(const Measurement& m) {
  const Evaluation& e = m.evaluation;
  const Naming naming = m.scheme ? naming_of(*m.scheme) : naming_of(m.precision);
  const std::vector<uint8_t> right = right_ones(e);
  int64_t only_float = 0, only_this = 0;
  for (size_t i = 0; i < right.size(); ++i) {
    only_float += m.float_right[i] != 0 && right[i] == 0 ? 1 : 0;
    only_this += m.float_right[i] == 0 && right[i] != 0 ? 1 : 0;
  }
  const Interval interval = wilson_interval(e.correct, e.images);
  QuantizationError total;
  json layers = json::array();
  for (const auto& [name, error] : m.errors) {
    total += error;
    layers.push_back(error_json(error));
    layers.back()["name"] = name;
  }
  const bool simulated = m.scheme && std::holds_alternative<SimulatedScheme>(*m.scheme);
  json row = error_json(total);
  row.update({{"scheme", naming.scheme},
              {"method", naming.method},
              {"bits", bits_or_null(naming.bits)},
              {"granularity", text_or_null(naming.granularity)},
              {"scale_sign", text_or_null(naming.scale_sign)},
              {"simulated", simulated},
              {"images", e.images},
              {"correct", e.correct},
              {"accuracy", e.accuracy()},
              {"accuracy_interval", {interval.low, interval.high}},
              {"loss", e.loss},
              {"only_float", only_float},
              {"only_this", only_this},
              {"mcnemar_p", mcnemar_p(only_float, only_this)},
              {"validation", validation_json(m.validation)},
              {"layers", layers},
              {"size", m.size},
              {"claimed_size", m.claimed ? estimated_json(*m.claimed) : json()},
              {"calibration", text_or_null(m.calibration)},
              {"checksum", text_or_null(m.checksum)},
              {"program", text_or_null(m.program)},
              {"need", m.need ? json{{"distinct_values", m.need->distinct}, {"bits", m.need->bits}} : json()},
              {"exponent_counts", json()},
              {"images_per_second", e.images_per_second()},
              {"evaluation_seconds", e.seconds},
              {"quantization_seconds", m.prepare_seconds}});
  row.update(compressed_json(m.compressed));
  if (m.scheme && std::holds_alternative<Scheme>(*m.scheme)) row.update(packed_json(std::get<Scheme>(*m.scheme)));
  if (m.exponent_counts) {
    const auto used = std::span(m.exponent_counts->counts).first(static_cast<size_t>(naming.bits));
    row["exponent_counts"] = std::vector<int64_t>(used.begin(), used.end());
  }
  add_both_names(row);
  return row;
}

Row row_of(json document) {
  add_both_names(document);
  Row row{.document = std::move(document)};
  try {
    take_naming(row);
    take_accuracy(row);
    take_validation(row);
    take_weights(row);
  } catch (const json::exception& error) {
    refuse(error.what());
  } catch (const UsageError& error) {
    refuse(error.what());
  }
  return row;
}

}  // namespace nibblenet::tools
