#include "tools/training/calibration_options.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "engine/io/holdout.h"
#include "engine/quant/text.h"
#include "layers/network/class_names.h"
#include "layers/network/input_range.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/model_search.h"
#include "tools/common/numbers.h"
#include "tools/common/outputs.h"
#include "tools/common/progress.h"
#include "tools/training/scheme_options.h"

namespace nibblenet::tools {
namespace {

struct CalibrationImages {
  Dataset dataset;
  Split split = Split::train;
};

/// Loads training images, or test images with a warning when the data has no others. `path` may be
/// the folder test/ of a data set, which selects its test split. `training` is the split to take of
/// training images.
CalibrationImages load_images(const std::filesystem::path& path, Split training, int64_t limit, Unreadable unreadable) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) fail<UsageError>("--calibrate {}: no such file or folder", path.string());
  const auto use_test_images = [&](const std::filesystem::path& from, std::string_view why) {
    Dataset dataset = load_dataset(from, Split::test, limit, unreadable);
    fmt::print(
        stderr,
        "warning: {} {}; calibrating on test images makes the accuracy measured on them look better than it is\n",
        path.string(), why);
    return CalibrationImages{std::move(dataset), Split::test};
  };
  const std::filesystem::path folder = path.has_filename() ? path : path.parent_path();
  if (folder.filename() == "test" && std::filesystem::is_directory(folder, error))
    return use_test_images(folder.parent_path().empty() ? "." : folder.parent_path(), "is the test split");
  try {
    return {load_dataset(path, training, limit, unreadable), training};
  } catch (const UsageError&) {
    throw;
  } catch (const Error&) {
    const std::exception_ptr without_training_images = std::current_exception();
    try {
      return use_test_images(path, "has only a test split");
    } catch (const Error&) {
      std::rethrow_exception(without_training_images);
    }
  }
}

std::string passes_text(const CalibrationFlags& flags) {
  const auto text_of = [&](Range range) {
    return std::to_string(flags.passes_of({.range = range, .rate_weight = flags.rate_weight.value_or(0)}));
  };
  const std::string others = text_of(Range::search), by_step = text_of(Range::step);
  const bool has_steps =
      std::ranges::any_of(flags.ranges, [](const std::string& text) { return parse_range(text).range == Range::step; });
  return has_steps && by_step != others ? fmt::format("{}, and {} where ranges go by step", others, by_step) : others;
}

}  // namespace

void CalibrationFlags::add_source_to(CLI::App& app) {
  auto* calibrate = app.add_option("--calibrate", data,
                                   "Measure on training images of DATA (as eval's --data) which rounding errors "
                                   "matter: the Hessian of every layer's inputs")
                        ->type_name("DATA");
  add_skip_option(app, unreadable);
  add_checked(app, "--calibration-images", images, not_negative,
              "How many of them, the same number of every class; 0: all")
      ->needs(calibrate);
  app.add_option("--calibration-seed", seed, "Seed that draws the output positions of convolutions to measure at")
      ->capture_default_str()
      ->needs(calibrate);
  app.add_option("--save-calibration", save, "Write what was measured, for --calibration")
      ->type_name("FILE")
      ->needs(calibrate);
  app.add_option("--calibration", load, "Hessians measured before, on this model")
      ->type_name("FILE")
      ->excludes(calibrate);
}

void CalibrationFlags::add_choice_to(CLI::App& app) {
  app.add_option("--rounding", rounding,
                 "nearest, or gptq: errors of rounding cancel in the layer's output; default: gptq "
                 "with a calibration, else nearest")
      ->check(CLI::IsMember({"nearest", "gptq"}))
      ->type_name("R");
  add_checked(app, "--column-order", order, CLI::IsMember({"natural", "diagonal"}),
              "Of GPTQ: natural, as weights are stored, or diagonal, largest inputs first");
  app.add_option("--passes", passes,
                 "Of GPTQ: coordinate-descent passes, which choose every code once more, given all others; default: 2, "
                 "but 0 for ranges by step and with a rate weight, where bits grow by as much as errors shrink")
      ->check(CLI::Range(0, 100))
      ->type_name("N");
  app.add_option(
         "--rate-weight", rate_weight,
         "Of GPTQ, for --compress: codes are chosen by error plus LAMBDA times the bits that they "
         "take in the file; 0: by error alone, 1.4: as at the optimum of a fine grid; default: 1.4 for --target-file, "
         "else 0")
      ->check(CLI::Range(0.0, 1e6))
      ->type_name("LAMBDA");
  app.add_option(
         "--range", ranges,
         "Scale of a group. max: from its largest weight (kmeans: its root mean square). search: the one of 33 with "
         "the least squared error, which a calibration weighs by the inputs' squares. step:X, linear only: values lie "
         "X root mean squares of the group apart, which suits --compress. PATTERN=R for some layers; repeatable, the "
         "last match counts. Default: search with a calibration, else max")
      ->allow_extra_args(false)  // one value each time: what follows may be MODEL
      ->type_name("R");
}

RangeRule parse_range(const std::string& text) {
  RangeRule rule;
  const size_t equals = text.find('=');
  if (equals != std::string::npos) rule.pattern = text.substr(0, equals);
  const std::string range = equals == std::string::npos ? text : text.substr(equals + 1);
  if (range == "max" || range == "search") {
    rule.range = range == "max" ? Range::max : Range::search;
    return rule;
  }
  constexpr std::string_view step = "step:";
  if (range.starts_with(step) && equals != 0)
    if (const auto deviations = parse_number<float>(range.substr(step.size()));
        deviations && *deviations >= 1e-3F && *deviations <= 1e3F)
      return {.pattern = rule.pattern, .range = Range::step, .deviations = *deviations};
  fail<UsageError>(
      "--range {}: expected max, search or step:X with X from 0.001 to 1000, and PATTERN= before it for some "
      "layers only",
      text);
}

QuantizeOptions CalibrationFlags::quantize_options(const std::string& weight, float step) const {
  QuantizeOptions options;
  options.range = calibrated() ? Range::search : Range::max;
  for (const std::string& text : ranges) {
    const RangeRule rule = parse_range(text);
    if (!matches_layer(rule.pattern, weight)) continue;
    options.range = rule.range;
    options.deviations = rule.deviations;
  }
  options.order = order == "diagonal" ? ColumnOrder::diagonal : ColumnOrder::natural;
  if (uses_gptq() && !calibrated()) throw UsageError("--rounding gptq needs --calibrate DATA or --calibration FILE");
  if (!uses_gptq() && order != "natural") throw UsageError("--column-order belongs to --rounding gptq");
  if (!uses_gptq() && rate_weight.value_or(0) > 0) throw UsageError("--rate-weight belongs to --rounding gptq");
  if (!uses_gptq() && passes.value_or(0) > 0) throw UsageError("--passes belongs to --rounding gptq");
  options.rounding = uses_gptq() ? Rounding::gptq : Rounding::nearest;
  options.rate_weight = rate_weight.value_or(0);
  if (step > 0) {
    options.range = Range::step;
    options.deviations = step;
    if (uses_gptq()) options.rate_weight = rate_weight.value_or(best_rate_weight);
  }
  if (uses_gptq()) options.passes = passes_of(options);
  return options;
}

WeightPacker CalibrationFlags::packer(const Calibration* calibration, Backend& backend) const {
  return {[flags = *this](const std::string& weight, float step) { return flags.quantize_options(weight, step); },
          calibration, backend};
}

void CalibrationFlags::expect_ranges_used(const StateDict& model) const {
  for (const std::string& text : ranges) {
    const RangeRule rule = parse_range(text);
    if (std::ranges::none_of(model.parameters, [&](const Parameter& parameter) {
          return parameter.is_weight() && matches_layer(rule.pattern, parameter.name);
        }))
      fail<UsageError>("--range {}: no layer of this name", text);
  }
}

std::optional<Calibration> CalibrationFlags::obtain(const std::filesystem::path& model_path, const StateDict& model,
                                                    Backend& backend, nlohmann::json* data_set,
                                                    CalibratingRanks* together) const {
  if (!calibrated()) return std::nullopt;
  if (!load.empty()) {
    Calibration calibration = load_calibration(load, model);
    if (data_set != nullptr)
      *data_set = {{"description", calibration.data}, {"stand_in", calibration.data.starts_with("stand-in")}};
    return calibration;
  }
  const bool writes = together == nullptr || together->ranks.rank() == 0;
  const std::optional<FileClaim> claim =
      writes ? claim_output("--save-calibration", save, OutputKind::calibration, {model_path}) : std::nullopt;
  const Split training = trained_with_validation(model) ? Split::fitting : Split::train;
  CalibrationImages images_found = load_images(data, training, images, unreadable);
  print_skipped(images_found.dataset);
  const std::string match = match_classes(images_found.dataset, model);
  print_match(match);
  const Preprocess preprocess = Preprocess::for_image_size(image_size_of(model));
  Network network(backend, dequantized(model));  // takes its parameters over: `model` is packed afterwards
  Progress progress("calibrating", "images");
  if (together != nullptr) {
    together->on_images(images_found.dataset);
    together->owners = owners_of_weights(model, images_found.dataset.size(), together->ranks.size());
  }
  Calibration calibration =
      together != nullptr ? calibrate(network, images_found.dataset, preprocess, {.seed = seed}, std::ref(progress),
                                      &together->ranks, together->owners)
                          : calibrate(network, images_found.dataset, preprocess, {.seed = seed}, std::ref(progress));
  progress.finish();
  calibration.data = fmt::format("{}, {}", images_found.dataset.description, to_string(images_found.split));
  if (data_set != nullptr) {
    *data_set = data_set_json(images_found.dataset, match);
    (*data_set)["description"] = calibration.data;
  }
  calibration.data_fingerprint = fingerprint_of(images_found.dataset);
  calibration.model_fingerprint = fingerprint_of(model);
  if (!save.empty() && together != nullptr) collect_hessians(together->ranks, model, together->owners, calibration);
  if (!save.empty() && writes) {
    save_calibration(save, calibration);
    fmt::print("wrote the calibration on {} images to {}\n", calibration.images, save);
  }
  return calibration;
}

bool trained_with_validation(const StateDict& model) { return model.metadata.contains(validation_key); }

void describe(std::map<std::string, std::string>& metadata, const CalibrationFlags& flags,
              const Calibration* calibration) {
  const bool plain_ranges = std::ranges::all_of(flags.ranges, [](const auto& text) { return text == "max"; });
  if (calibration == nullptr && plain_ranges) return;
  metadata["rounding"] = flags.uses_gptq() ? "compensated" : "nearest";
  metadata["range"] = !flags.ranges.empty() ? fmt::format("{}", fmt::join(flags.ranges, ", "))
                      : flags.calibrated()  ? "search"
                                            : "max";
  if (flags.uses_gptq()) {
    metadata["column_order"] = flags.order;
    metadata["refinements"] = passes_text(flags);
  }
  if (flags.rate_weight.value_or(0) > 0) metadata["rate_weight"] = fmt::format("{}", *flags.rate_weight);
  if (calibration == nullptr) return;
  metadata["calibration_images"] = std::to_string(calibration->images);
  metadata["calibration_positions"] = std::to_string(calibration->positions);
  metadata["calibration_seed"] = std::to_string(calibration->seed);
  metadata["calibration_image_size"] = std::to_string(calibration->image_size);
  metadata["calibration_data"] = calibration->data;
  metadata["calibration_fingerprint"] = calibration->data_fingerprint;
  for (const auto& [layer, range] : calibration->ranges) set_input_range(metadata, layer, range);
}

}  // namespace nibblenet::tools
