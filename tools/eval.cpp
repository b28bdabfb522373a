#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "layers/network/class_names.h"
#include "layers/network/evaluate.h"
#include "layers/network/image_feed.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/launcher.h"
#include "tools/common/model_search.h"
#include "tools/common/numbers.h"
#include "tools/common/outputs.h"
#include "tools/common/progress.h"
#include "tools/common/rank_group.h"
#include "tools/common/report.h"
#include "tools/common/simulation.h"
#include "tools/common/version.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options : CommonOptions {
  std::string data;
  Unreadable unreadable = Unreadable::refuse;
  std::string split = "test";
  int64_t limit = 0;
  int64_t batch = 128;
  int image_size = 0;
  std::string compare;
  std::string logits;
  std::string simulate;
  std::string repair;
  bool fold_first = false;
  bool mirror = false;
  bool verbose = false;
  bool floats_in_float32 = false;  ///< whatever --precision says of packed models
  double rank_timeout = 300;
  std::string words;  ///< of the command
};

/// The simulation of --simulate and --repair; nothing without them.
std::optional<SimulatedScheme> simulated_scheme(const Options& options) {
  if (options.simulate.empty()) return std::nullopt;
  SimulatedScheme scheme = parse_simulated_scheme(options.simulate);
  if (options.repair.empty()) return scheme;
  scheme.repairs = parse_linear_repairs(options.repair);
  validate(scheme);
  return scheme;
}

/// One model, evaluated, and the facts about its size.
struct Result {
  std::string model;
  Evaluation evaluation;
  std::optional<Evaluation> mirrored;  ///< by the mean of the logits of each image and its mirror image
  std::vector<SizeRow> ledger;
  int64_t file_bytes = 0;
  int64_t header_bytes = 0;
  int64_t peak_bytes = 0;
  std::string device;
  std::string device_description;
  nlohmann::json precision;                    ///< precision_json()
  std::vector<std::string> precision_lines;    ///< what it costs
  std::optional<DeviceMemory> device_memory;   ///< while the model was resident
  size_t device_bytes_before = 0;              ///< in use before it was loaded
  std::optional<SimulationReport> simulation;  ///< its weights are simulated: it has no size
  std::vector<LayerRoute> routes;              ///< of a whole batch
  bool folded = false;                         ///< the first convolution, with the preparation of images
  nlohmann::json data;                         ///< what its labels were matched with
};

SimulationReport simulate_model(StateDict& model, const SimulatedScheme& scheme) {
  Progress progress("simulating", "weights");
  return simulate_weights(model, scheme, [&](int64_t done, int64_t total) { progress.update_or_stop(done, total); });
}

/// Simulated weights are evaluated in float32, unless --precision says otherwise.
PrecisionChoice chosen_precision(const Options& options, const Backend& backend, const StateDict& model,
                                 bool is_simulated) {
  const std::string& asked = options.device.precision;
  if (is_simulated && (asked.empty() || asked == "auto")) return {};
  return options.device.precision_of(backend, model);
}

/// For the model that another one is compared with. Float weights have no products in int8: they
/// compute in float32 beside one that has.
Options as_usual(Options options) {
  options.fold_first = false;
  options.mirror = false;
  options.floats_in_float32 = options.device.precision == to_string(Precision::int8);
  return options;
}

/// NaN is the likeliest class of no image, and differs from nothing: what it leads to is no result.
void expect_numbers(const Result& result) {
  const auto logits = result.evaluation.logits.view().span();
  const auto lost = std::ranges::count_if(logits, [](float logit) { return !std::isfinite(logit); });
  if (lost > 0)
    fail<FormatError>("{}: {} of {} logits are NaN or infinite; tools/inspect shows which weights are", result.model,
                      lost, logits.size());
}

/// The data set's labels become the model's.
Result evaluate_model(const std::filesystem::path& path, Dataset& dataset, Options options, bool data_asked_for,
                      Ranks* ranks, const std::optional<SimulatedScheme>& scheme = std::nullopt) {
  const auto backend = options.device.make();
  const std::optional<DeviceMemory> before = backend->device_memory();
  StateDict dict = load_model(path, options.checksums);
  if (options.floats_in_float32 && !dict.packed()) options.device.precision = to_string(Precision::float32);
  const std::string match = match_classes(dataset, dict, data_asked_for);
  print_match(match);
  std::optional<SimulationReport> simulation;
  if (scheme) simulation = simulate_model(dict, *scheme);
  const int image_size = image_size_of(dict, options.image_size);
  const Preprocess preprocess = Preprocess::for_image_size(image_size);
  std::optional<ResampleTables> tables;
  if (options.fold_first) tables = tables_of_all(dataset, preprocess);
  const PrecisionChoice choice = chosen_precision(options, *backend, dict, scheme.has_value());
  Network network(*backend, std::move(dict), choice.precision, tables ? &*tables : nullptr);
  expect_demanded(choice, network);
  Progress progress("evaluating", "images");
  Result result{.model = path.string(),
                .evaluation = evaluate(network, dataset, preprocess, options.batch, std::ref(progress), false, ranks),
                .ledger = network.ledger(),
                .file_bytes = network.file_bytes(),
                .header_bytes = network.header_bytes(),
                .peak_bytes = static_cast<int64_t>(backend->meter().peak_total()),
                .device = backend->name(),
                .device_description = backend->description(),
                .precision = precision_json(choice, network),
                .precision_lines = precision_lines(choice, network),
                .device_memory = backend->device_memory(),
                .device_bytes_before = before ? before->used : 0,
                .simulation = std::move(simulation),
                .routes = layer_routes(network, {options.batch, image_size, image_size, 3}),
                .folded = network.folded(),
                .data = data_set_json(dataset, match)};
  if (options.mirror) {
    Progress again("evaluating mirror images", "images");
    result.mirrored =
        mean_of(result.evaluation, evaluate(network, dataset, preprocess, options.batch, std::ref(again), true, ranks));
  }
  if (!scheme) expect_numbers(result);  // the notebooks' defects may well overflow
  return result;
}

void print(const Result& result) {
  for (const std::string& line : result.precision_lines) fmt::print("{}\n", line);
  const Evaluation& e = result.evaluation;
  const Interval interval = wilson_interval(e.correct, e.images);
  fmt::print("accuracy {:.2f} % ({} of {}; 95 % interval {:.2f} to {:.2f} %), cross-entropy {:.5f}\n",
             100 * e.accuracy(), e.correct, e.images, 100 * interval.low, 100 * interval.high, e.loss);
  if (result.mirrored) {
    const Interval range = wilson_interval(result.mirrored->correct, e.images);
    fmt::print(
        "with each image's mirror image, logits averaged: accuracy {:.2f} % ({} of {}; 95 % interval {:.2f} to {:.2f} "
        "%), cross-entropy {:.5f}\n",
        100 * result.mirrored->accuracy(), result.mirrored->correct, e.images, 100 * range.low, 100 * range.high,
        result.mirrored->loss);
  }
  fmt::print("{:.1f} images/s: {:.2f} s, {:.2f} s of it waiting for images; a thread prepared them in {:.2f} s\n",
             e.images_per_second(), e.seconds, e.wait_seconds, e.prepare_seconds);
  if (result.simulation) {
    fmt::print("{}", simulation_table(*result.simulation));
    return;
  }
  fmt::print("{}", size_table(result.ledger, result.file_bytes, result.header_bytes));
  fmt::print("peak memory of the backend: {}\n", megabytes(static_cast<double>(result.peak_bytes)));
  if (result.device_memory)
    fmt::print(
        "the device reports {} more in use than before loading ({} in all, of {}; its driver counts in pages and "
        "adds buffers of its own)\n",
        megabytes(static_cast<double>(result.device_memory->used) - static_cast<double>(result.device_bytes_before)),
        megabytes(static_cast<double>(result.device_memory->used)),
        megabytes(static_cast<double>(result.device_memory->total)));
}

nlohmann::json to_json(const Result& result) {
  const Evaluation& e = result.evaluation;
  const Interval interval = wilson_interval(e.correct, e.images);
  // Null where the device's memory is the process's, and all three where weights are simulated:
  // nothing was measured.
  nlohmann::json memory, peak, size;
  if (!result.simulation) {
    peak = result.peak_bytes;
    size = size_json(result.ledger, result.file_bytes, result.header_bytes);
  }
  if (result.device_memory && !result.simulation)
    memory = {{"before", result.device_bytes_before},
              {"used", result.device_memory->used},
              {"total", result.device_memory->total}};
  nlohmann::json mirrored;
  if (result.mirrored) {
    const Interval range = wilson_interval(result.mirrored->correct, e.images);
    mirrored = {{"correct", result.mirrored->correct},
                {"accuracy", result.mirrored->accuracy()},
                {"accuracy_interval", {range.low, range.high}},
                {"loss", result.mirrored->loss}};
  }
  nlohmann::json json = {{"model", result.model},
                         {"mirror", mirrored},
                         {"simulated", result.simulation.has_value()},
                         {"simulation", result.simulation ? simulation_json(*result.simulation) : nlohmann::json()},
                         {"first_folded", result.folded},
                         {"device_memory", memory},
                         {"images", e.images},
                         {"correct", e.correct},
                         {"accuracy", e.accuracy()},
                         {"accuracy_interval", {interval.low, interval.high}},
                         {"loss", e.loss},
                         {"images_per_second", e.images_per_second()},
                         {"seconds", e.seconds},
                         {"prepare_seconds", e.prepare_seconds},
                         {"wait_seconds", e.wait_seconds},
                         {"peak_bytes", peak},
                         {"device", result.device},
                         {"size", size}};
  json.update(result.precision);
  return json;
}

/// Nothing where the two do not tell the same classes apart in the same order.
std::optional<double> largest_difference(const Result& one, const Result& other) {
  const Evaluation &a = one.evaluation, &b = other.evaluation;
  if (a.logits.shape() != b.logits.shape() || a.labels != b.labels) return std::nullopt;
  double largest = 0;
  for (int64_t i = 0; i < a.logits.elements(); ++i)
    largest = std::max(largest, std::fabs(static_cast<double>(a.logits.data()[i]) - b.logits.data()[i]));
  return largest;
}

/// The same images through both models: which of them only one model gets right.
nlohmann::json compare(const Result& result, const Result& other) {
  expect_numbers(result);
  expect_numbers(other);
  const auto [only_this, only_other] = discordant(result.evaluation, other.evaluation);
  const double p = mcnemar_p(only_this, only_other);
  const double points = 100 * (result.evaluation.accuracy() - other.evaluation.accuracy());
  const int64_t resident = sum(result.ledger, "").resident.total();
  const int64_t other_resident = sum(other.ledger, "").resident.total();
  const auto bytes = [](const Result& of, int64_t count) { return of.simulation ? "none" : thousands(count); };
  fmt::print("\ncompared with {}, on the same {} images:\n", other.model, result.evaluation.images);
  fmt::print("{:<10} {:>10} {:>14} {:>16} {:>16}\n", "", "accuracy", "cross-entropy", "file bytes", "resident bytes");
  for (const auto& [name, each, total] :
       {std::tuple{"that model", &other, other_resident}, std::tuple{"this model", &result, resident}})
    fmt::print("{:<10} {:>8.2f} % {:>14.5f} {:>16} {:>16}\n", name, 100 * each->evaluation.accuracy(),
               each->evaluation.loss, bytes(*each, each->file_bytes), bytes(*each, total));
  for (const std::string& line : other.precision_lines) fmt::print("that model: {}\n", line);
  fmt::print("difference {:+.2f} points: only that one right {}, only this one right {}; McNemar p = {:.4f}{}\n",
             points, only_other, only_this, p, p < 0.05 ? "" : " (no significant difference)");
  const std::optional<double> largest = largest_difference(result, other);
  if (largest) fmt::print("largest difference of a logit: {:.4g}\n", *largest);
  if (!result.simulation)
    fmt::print("resident size {:.2f}x smaller, speed {:.2f}x\n",
               static_cast<double>(other_resident) / static_cast<double>(resident),
               result.evaluation.images_per_second() / other.evaluation.images_per_second());
  return {{"model", other.model},
          {"precision", other.precision.at("precision")},
          {"accuracy", other.evaluation.accuracy()},
          {"loss", other.evaluation.loss},
          {"images_per_second", other.evaluation.images_per_second()},
          {"size", size_json(other.ledger, other.file_bytes, other.header_bytes)},
          {"only_this", only_this},
          {"only_other", only_other},
          {"largest_logit_difference", largest ? nlohmann::json(*largest) : nlohmann::json()},
          {"mcnemar_p", p}};
}

void write_logits(const std::filesystem::path& path, const Evaluation& evaluation) {
  const std::vector<int64_t> labels(evaluation.labels.begin(), evaluation.labels.end());
  const auto sizes = evaluation.logits.shape().sizes();
  write_safetensors(path,
                    {{"logits", DType::f32, {sizes.begin(), sizes.end()}, bytes_of(evaluation.logits.view().span())},
                     {"labels", DType::i64, {evaluation.images}, bytes_of(std::span<const int64_t>(labels))}},
                    {});
}

/// "simulated-linear, simulated-linear-row, …"
std::string simulation_names() {
  std::string names;
  for (const SimulationTraits& traits : simulation_table())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", traits.name);
  return names;
}

/// What all ranks must have in common, so that they evaluate one model.
RankGroup::Facts facts_of(const Options& options, const std::filesystem::path& model, const Dataset& dataset) {
  RankGroup::Facts facts = {{"build", version_json().dump()},
                            {"command", options.words},
                            {"device", options.device.make()->description()},
                            {"data set", fingerprint_of_images(dataset)},
                            {"model", fingerprint_of_file(model)}};
  if (!options.compare.empty()) facts.emplace_back("model of --compare", fingerprint_of_file(options.compare));
  return facts;
}

void eval(Options& options, RankGroup& group) {
  share_machine(options.device);
  const std::optional<SimulatedScheme> scheme = simulated_scheme(options);
  const std::filesystem::path model = find_model(options.model, scheme ? ModelKind::fine_tuned : ModelKind::packed);
  const std::optional<FileClaim> claim =
      group.first() ? claim_output("--logits", options.logits, OutputKind::logits, {model, options.compare})
                    : std::nullopt;
  check_model_file(model);  // a missing or broken file is reported before the images are read
  if (!options.compare.empty()) check_model_file(options.compare);
  DataSource data = find_data(options.data, options.unreadable);
  Dataset dataset = data.load(parse_split(options.split), options.limit);
  if (dataset.size() == 0) fail<UsageError>("there are no images to evaluate");
  if (group.several() != nullptr) group.agree(facts_of(options, model, dataset));
  const Result result = evaluate_model(model, dataset, options, data.asked_for(), group.several(), scheme);
  fmt::print("{}{}{} on {} {} images of {} ({}, {})\n", result.model,
             scheme ? fmt::format(", simulated by {},", to_string(*scheme)) : "",
             result.folded ? ", first convolution folded with the resize," : "", dataset.size(), options.split,
             dataset.description, result.device_description, result.precision.at("precision").get<std::string>());
  print(result);
  if (options.verbose) fmt::print("{}", routes_table(result.routes));
  nlohmann::json json = to_json(result);
  if (!options.logits.empty() && group.first()) write_logits(options.logits, result.evaluation);
  if (!options.compare.empty())
    json["compared_with"] =
        compare(result, evaluate_model(options.compare, dataset, as_usual(options), true, group.several()));
  json["data"] = dataset.description;
  json["data_set"] = result.data;
  print_if_standin(dataset.stand_in());
  json["split"] = options.split;
  if (group.first()) write_json(options.json, json);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures accuracy, speed and size of a float or packed model.", "eval");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float or packed model ({}); without it the newest packed one in weights/, or the newest "
                             "fine-tuned one with --simulate",
                             model_files));
  app.add_option("--data", options.data, data_help)->type_name("PATH");
  add_skip_option(app, options.unreadable);
  add_split_option(app, options.split);
  add_checked(app, "--limit", options.limit, not_negative,
              "Evaluate the first N/classes images of every class; 0: all");
  add_checked(app, "--batch", options.batch, CLI::Range(1, 65536), "Images a forward pass");
  app.add_option("--image-size", options.image_size, "Input pixels; default: what the model was trained with, else 224")
      ->check(CLI::Range(1, 4096));
  options.device.add_precision_to(app, "");
  app.add_flag("--fold-first", options.fold_first,
               "Fold the first convolution with the resize and the normalisation in front of it: for 32 x 32 images "
               "enlarged to 224, 9.3 million multiplications instead of 70.3. Results differ a little, since the "
               "resized image is not rounded to bytes. Applies to MODEL, not to --compare's");
  app.add_flag("--mirror", options.mirror,
               "Also evaluate MODEL by the mean of the logits of each image and its mirror image: it takes twice the "
               "time, so its accuracy is printed beside the plain one, never in its place");
  app.add_option("--compare", options.compare,
                 "Evaluate a second model on the same images and compare image by image (McNemar)")
      ->type_name("MODEL");
  auto* simulate =
      app.add_option("--simulate", options.simulate,
                     "First round a float model's weights in float32 as the original notebooks do, defects included: " +
                         simulation_names() + " (NAME[:BITS]). Such weights have no size")
          ->type_name("NAME");
  app.add_option("--repair", options.repair,
                 "Repair defects of simulated-linear or simulated-linear-row, to see which does the damage: overflow "
                 "(clamp, do not wrap), truncation (round), range (let it include 0), zero-point (shift it onto "
                 "int8's), precision (compute in double), or all; a list with commas")
      ->needs(simulate)
      ->type_name("LIST");
  app.add_option("--logits", options.logits, "Write logits (N x classes, f32) and labels (i64) as safetensors")
      ->type_name("FILE");
  app.add_flag("--verbose", options.verbose, "Print which kernel computes each layer");
  options.add_to(app);
  add_rank_timeout(app, options.rank_timeout);
  options.words = words_of(argc, argv);
  let_first_rank_speak();
  return run_long_tool(app, argc, argv, [&] {
    run_on_ranks(options.rank_timeout, OnStop::end_all, [&](RankGroup& group) { eval(options, group); });
  });
}
