#include <fmt/core.h>
#include <omp.h>

#include "layers/network/class_names.h"
#include "tools/common/aliases.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/model_search.h"
#include "tools/common/numbers.h"
#include "tools/common/outputs.h"
#include "tools/common/progress.h"
#include "tools/study/gnuplot.h"
#include "tools/study/runner.h"
#include "tools/study/shards.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options : CommonOptions {
  std::string data;
  std::string preset;
  std::vector<std::string> schemes;
  std::vector<std::string> models;
  CalibrationFlags calibration;
  int64_t limit = 0;
  std::string out;
  std::string split = "test";
  int64_t batch = 128;
  int image_size = 0;
  bool keep_models = false;
  std::string shard;  ///< "2/4"; empty: all schemes
  bool merge = false;
  bool validation = false;
};

std::vector<SweepScheme> chosen_schemes(const Options& options, const NetworkSpec& network) {
  const bool others = !options.schemes.empty() || !options.models.empty();
  std::vector<SweepScheme> schemes;
  if (!options.preset.empty() || !others)
    schemes = preset_schemes(options.preset.empty() ? "notebooks" : options.preset, network);
  for (const SweepScheme& scheme : parse_scheme_lists(options.schemes))
    if (std::ranges::find(schemes, scheme) == schemes.end()) schemes.push_back(scheme);
  for (const std::string& path : options.models) {
    const SweepScheme file = model_file(path);
    if (std::ranges::find(schemes, file) != schemes.end())
      fail<UsageError>("--models {}: another one has the same name; rows are named after their files", path);
    schemes.push_back(file);
  }
  return schemes;
}

int64_t groups_of(const StateDict& model, Granularity::Kind kind) {
  int64_t groups = 0;
  for (const Parameter& parameter : model.parameters)
    if (parameter.is_weight()) groups += make_group_map({kind}, parameter.shape()).groups;
  return groups;
}

std::string result_line(const Row& row) {
  std::string size = row.size ? fmt::format("{:.3f} MB resident", static_cast<double>(row.size->resident.total()) / 1e6)
                              : fmt::format("simulated, needs {} bits", row.need ? row.need->bits : 32);
  if (row.compressed) size += fmt::format(", {:.3f} MB in the file", static_cast<double>(row.smallest_file()) / 1e6);
  if (row.validation) size += fmt::format(", validation {:.2f} %", 100 * row.validation->accuracy);
  return fmt::format("{:<36} {:>6.2f} %  loss {:.5f}  -{} +{}  {}", row.scheme, 100 * row.accuracy, row.loss,
                     row.only_float, row.only_this, size);
}

void warn_of_other_programs(const SweepFolder& folder) {
  const auto others = std::ranges::count_if(
      folder.rows(), [own = checksum_of_program()](const Row& row) { return row.program != own; });
  if (others > 0)
    fmt::print(stderr,
               "warning: another build of sweep measured {} of them and may compute or round differently; for rows of "
               "one build, choose another --out\n",
               others);
}

/// The float model, what was asked for in its order, then whatever else the folder has.
std::vector<Row> in_order(const SweepFolder& folder, const std::string& float_scheme,
                          const std::vector<std::string>& schemes) {
  std::vector<std::string> names = {float_scheme};
  names.insert(names.end(), schemes.begin(), schemes.end());
  for (const Row& row : folder.rows())
    if (std::ranges::find(names, row.scheme) == names.end()) names.push_back(row.scheme);
  std::vector<Row> rows;
  for (const std::string& name : names)
    if (const Row* row = folder.find(name)) rows.push_back(*row);
  return rows;
}

std::vector<std::string> names_of(const std::vector<SweepScheme>& schemes) {
  std::vector<std::string> names;
  for (const SweepScheme& scheme : schemes) names.push_back(to_string(scheme));
  return names;
}

/// So that --json replaces none of them at the end.
std::vector<FileClaim> claim_files_of(const SweepFolder& folder) {
  std::vector<FileClaim> claims;
  for (const char* name : SweepFolder::files)
    claims.push_back(claim_file(fmt::format("{} of --out", name), folder.path() / name));
  return claims;
}

/// Writes the report, with its plots, into the sweep's folder.
void report_on(const SweepFolder& folder, const std::vector<Row>& rows) {
  const DrawnPlots drawn = draw(make_plots(rows), folder.path() / "plots");
  copy_to_old_plots(folder.path() / "plots");
  if (!drawn.problem.empty()) fmt::print("{}\n", drawn.problem);
  write_report(folder.path(), rows, folder.setup(), drawn.figures);
  fmt::print("report: {0}/report.md, .html, .csv, .json; {1} plots in {0}/plots\n", folder.path().string(),
             drawn.figures.size());
}

std::filesystem::path sweep_folder(const Options& options, const std::filesystem::path& model) {
  return options.out.empty() ? project_root() / "sweeps" / model.stem() : std::filesystem::path(options.out);
}

/// --merge: reads neither the model nor images.
void merge(const Options& options) {
  if (options.out.empty() && options.model.empty()) fail<UsageError>("--merge needs --out DIR, the sweep's folder");
  const MergedShards merged = merge_shards(sweep_folder(options, options.model));
  const std::vector<FileClaim> claims = claim_files_of(merged.folder);
  const nlohmann::json setup = merged.folder.setup();
  const Precision precision = parse_precision(setup.at("precision").get<std::string>());
  const std::vector<Row> rows =
      in_order(merged.folder, std::string(to_string(float_precision(precision))), merged.schemes);
  report_on(merged.folder, rows);
  for (const std::string& missing : merged.missing) fmt::print("missing: {}\n", missing);
  print_if_standin(setup.at("data_description") == "stand-in");
  nlohmann::json report = report_json(rows, setup);
  report["missing"] = merged.missing;
  write_json(options.json, std::move(report));
}

/// One for all rows, so that they compare: `auto` has no measured divergences to go by.
Precision precision_of_rows(const Options& options, const Backend& backend) {
  const std::string& asked = options.device.precision;
  const Precision precision = asked.empty() || asked == "auto" ? backend.preferred_precision() : parse_precision(asked);
  backend.expect_support(precision);
  return precision;
}

[[noreturn]] void stop(const SweepFolder& folder, Progress& progress) {
  progress.finish();
  throw Stopped(fmt::format("stopped; {} rows are in {}: the same command goes on from there", folder.rows().size(),
                            folder.path().string()));
}

void sweep(const Options& options) {
  chosen_schemes(options, networks().front());  // what cannot be read is said before a model is
  const std::filesystem::path path = find_model(options.model, ModelKind::fine_tuned);
  const StateDict model = load_model(path, options.checksums);
  if (model.packed())
    fail<UsageError>("{} is packed already: name the float model it came from, or tools/export it first",
                     path.string());
  std::vector<SweepScheme> schemes = chosen_schemes(options, network_of(model));
  std::filesystem::path out = sweep_folder(options, path);
  if (!options.shard.empty()) {
    const Shard shard = parse_shard(options.shard);
    schemes = share_of(schemes, shard);
    out = folder_of(out, shard);
  }
  const auto backend = options.device.make();
  const Precision precision = precision_of_rows(options, *backend);
  check_schemes(schemes, model, options.calibration.calibrated(), precision);
  DataSource source = find_data(options.data, options.calibration.unreadable);
  Dataset dataset = source.load(parse_split(options.split), options.limit);
  if (dataset.size() == 0) fail<UsageError>("there are no images to evaluate");
  const std::string match = match_classes(dataset, model, source.asked_for());
  print_match(match);
  std::optional<Dataset> validation;
  if (options.validation) {
    validation = source.load(Split::validation, options.limit);
    match_classes(*validation, model, source.asked_for());
  }
  const int image_size = image_size_of(model, options.image_size);

  SweepFolder folder(out, {.model = path.string(),
                           .model_checksum = checksum_of(model),
                           .data = source.path().string(),
                           .data_description = dataset.description,
                           .data_checksum = checksum_of(dataset),
                           .split = options.split,
                           .images = dataset.size(),
                           .batch = options.batch,
                           .image_size = image_size,
                           .device = backend->name(),
                           .threads = omp_get_max_threads(),
                           .precision = std::string(to_string(precision)),
                           .weights = model.weight_count(),
                           .row_groups = groups_of(model, Granularity::Kind::row),
                           .channel_groups = groups_of(model, Granularity::Kind::channel),
                           .validation_images = validation ? validation->size() : 0,
                           .validation_checksum = validation ? checksum_of(*validation) : ""});
  const std::vector<FileClaim> claims = claim_files_of(folder);
  if (!options.shard.empty()) write_plan(folder.path(), schemes);
  check_disk(folder, model, schemes, options.keep_models);
  fmt::print("{}: the float model and {} schemes on {} {} images{} of {} ({}, {})\n", folder.path().string(),
             schemes.size(), dataset.size(), options.split,
             validation ? fmt::format(" and {} validation images", validation->size()) : "", dataset.description,
             backend->description(), to_string(precision));
  if (!folder.damaged_lines().empty())
    fmt::print("results.jsonl: dropped {} damaged line(s), the first is line {}; they are measured again\n",
               folder.damaged_lines().size(), folder.damaged_lines().front());
  if (!folder.rows().empty()) {
    fmt::print("going on: {} rows are there already\n", folder.rows().size());
    warn_of_other_programs(folder);
  }

  Progress progress("sweep", "images");
  std::optional<Calibration> measured;  // once a recipe asks for it
  const auto calibration = [&]() -> const Calibration& {
    if (!measured) {
      progress.finish();
      measured = options.calibration.obtain(path, model, *backend);
    }
    return *measured;
  };
  try {
    run_sweep(
        folder,
        {*backend, model, dataset, Preprocess::for_image_size(image_size), options.batch, precision,
         options.keep_models, calibration, source, validation ? &*validation : nullptr},
        schemes,
        [&](const SweepPosition& at) {
          progress.update(at.images_done, at.images,
                          fmt::format("scheme {} of {}: {}", at.scheme, at.schemes, at.doing));
          return interrupted();
        },
        [&](const Row& row) {
          progress.finish();
          fmt::print("{}\n", result_line(row));
          std::fflush(stdout);
        });
  } catch (const Interrupted&) {
    stop(folder, progress);
  } catch (const Stopped&) {  // while packing
    stop(folder, progress);
  }
  progress.finish();

  const std::vector<Row> rows = in_order(folder, std::string(to_string(float_precision(precision))), names_of(schemes));
  if (options.shard.empty())
    report_on(folder, rows);
  else
    fmt::print("shard {} is done: {} rows in {}; when all are: tools/sweep --merge --out {}\n", options.shard,
               rows.size(), folder.path().string(), shell_quoted(folder.path().parent_path().string()));
  print_if_standin(dataset.stand_in());
  nlohmann::json report = report_json(rows, folder.setup());
  report["data_set"] = data_set_json(dataset, match);
  write_json(options.json, std::move(report));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Quantizes a float model by many schemes, measures accuracy, sizes and errors of each, and writes a report.\n"
      "A sweep that was stopped or killed goes on where it was when the same command is given again.",
      "sweep");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float model ({}); without it the newest fine-tuned one in weights/", model_files));
  app.add_option("--data", options.data, data_help)->type_name("PATH");
  app.add_option(
         "--preset", options.preset,
         "notebooks: the original notebooks' set, simulated and as true n-bit codes (the default); full: every method, "
         "width and granularity; frontier: what pack does best at every width, with and without a calibration, plain "
         "and compressed (needs --calibrate or --calibration)")
      ->check(CLI::IsMember({"notebooks", "full", "frontier"}));
  app.add_option("--schemes", options.schemes,
                 "Schemes separated by commas, METHOD:BITS:GRANULARITY[:f16][:absolute|signed][:zero-point], "
                 "simulated-METHOD:BITS, or options of pack: 'pack --bits 3 --calibrated'; instead of a preset, or on "
                 "top of a --preset; repeatable")
      ->allow_extra_args(false)  // one value each time: what follows may be MODEL
      ->type_name("LIST");
  app.add_option("--models", options.models,
                 "Packed models of the same network that were made otherwise, by training for instance: measured "
                 "unchanged, beside the schemes; repeatable")
      ->allow_extra_args(false)
      ->type_name("FILE");
  options.calibration.add_source_to(app);
  add_checked(app, "--limit", options.limit, not_negative,
              "Evaluate the first N/classes images of every class; 0: all");
  app.add_option("--out", options.out, "Folder of results and report; default: sweeps/<model>")->type_name("DIR");
  CLI::Option* split = add_split_option(app, options.split);
  app.add_flag("--validation", options.validation,
               "Measure every row on the held-out training images (eval --split validation) too: choose by these, and "
               "read on the test images what the choice is worth")
      ->excludes(split);
  add_checked(app, "--batch", options.batch, CLI::Range(1, 65536), "Images a forward pass");
  app.add_option("--image-size", options.image_size, "Input pixels; default: what the model was trained with, else 224")
      ->check(CLI::Range(1, 4096));
  CLI::Option* keep =
      app.add_flag("--keep-models,!--no-keep-models", options.keep_models,
                   "Keep every packed model in DIR once it is measured (default with the notebooks preset alone), or "
                   "delete each");
  CLI::Option* shard =
      app.add_option("--shard", options.shard,
                     "Measure only the I-th of N shares of the schemes, on any machine, into DIR/shard-I-of-N")
          ->type_name("I/N");
  CLI::Option* merge_option =
      app.add_flag("--merge", options.merge,
                   "Add the rows of DIR's shards to DIR, and write the report; reads no model and no images");
  for (const char* other : {"--data", "--preset", "--schemes", "--models", "--validation"})
    merge_option->excludes(app.get_option(other));
  merge_option->excludes(shard);
  options.device.add_precision_to(app, "");
  options.add_to(app);
  return run_long_tool(app, argc, argv, [&] {
    const bool only_notebooks =
        options.schemes.empty() && options.models.empty() && (options.preset.empty() || options.preset == "notebooks");
    if (keep->count() == 0) options.keep_models = only_notebooks;
    if (options.merge)
      merge(options);
    else
      sweep(options);
  });
}
