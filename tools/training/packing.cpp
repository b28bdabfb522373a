#include "tools/training/packing.h"

#include <optional>

#include "engine/core/stopwatch.h"
#include "layers/network/class_names.h"
#include "layers/network/precision_choice.h"
#include "tools/common/command_line.h"
#include "tools/common/progress.h"
#include "tools/training/precision_report.h"

namespace nibblenet::tools {
namespace {

/// The candidates of a weight: its scheme by the flags, at every width of the method.
std::vector<Candidate> every_width(const PackingFlags& flags, const Parameter& weight, const NetworkSpec& network) {
  SchemeFlags scheme = flags.scheme;
  const Method method = scheme.method.empty() ? Method::linear : parse_method(scheme.method);
  std::vector<Candidate> candidates;
  for (const Scheme& width : schemes_of_every_width(method)) {
    scheme.bits = width.bits_per_code();
    const Scheme chosen = SchemeChoice(scheme, flags.calibration.uses_gptq(), network)(weight);
    if (candidates.empty() || candidates.back().scheme != chosen) candidates.push_back({chosen});
  }
  return candidates;
}

/// The candidates of a weight for --target-file: `linear` at 16 steps, each about sqrt(2) times the
/// one before. They are closer from 1 to 2, where the largest layer's size is decided. Each has the
/// narrowest width that reaches the largest weight: the size in the file depends on the step, not
/// on the width.
std::vector<Candidate> every_step(const PackingFlags& flags, const Parameter& weight) {
  Scheme scheme = default_scheme(Method::linear, 8);
  scheme.granularity = parse_granularity(flags.scheme.granularity.empty() ? "channel" : flags.scheme.granularity);
  scheme.scale = parse_scale_type(flags.scheme.scale.empty() ? "f16" : flags.scheme.scale);
  const float reach = largest_deviation(weight.values().view(), scheme.granularity);
  const MethodTraits& traits = traits_of(scheme.method);
  std::vector<Candidate> candidates;
  for (const float step :
       {0.18F, 0.25F, 0.35F, 0.5F, 0.7F, 1.0F, 1.2F, 1.4F, 1.7F, 2.0F, 2.8F, 4.0F, 5.6F, 8.0F, 11.0F, 16.0F}) {
    scheme.bits = traits.min_bits;
    while (scheme.bits < traits.max_bits && make_codebook(scheme.method, scheme.bits).scale_to * step < reach)
      ++scheme.bits;
    candidates.push_back({scheme, step});
  }
  return candidates;
}

/// pack_weights() with a line of progress. A Hessian that will not be asked for again is let go:
/// the largest takes 340 MB.
std::vector<LayerReport> pack_all(StateDict& dict, SchemeChoice& schemes, WeightPacker& packer,
                                  std::optional<Calibration>& calibration) {
  Progress progress("packing", "weights");
  std::vector<LayerReport> reports = pack_weights(
      dict, std::ref(schemes), packer,
      [&](int64_t done, int64_t total, const std::string& weight) { progress.update_or_stop(done, total, weight); },
      [&](const std::string& weight) {
        if (calibration) calibration->hessians.erase(weight);
      });
  progress.finish();
  return reports;
}

nlohmann::json to_json(const std::vector<LayerReport>& reports) {
  nlohmann::json layers = nlohmann::json::array();
  for (const auto& [weight, done] : reports)
    layers.push_back({{"weight", weight},
                      {"nearest_error", done.nearest_error},
                      {"error", done.error},
                      {"coded_bits", done.bits},
                      {"damping", done.damping},
                      {"rows_kept", done.rows_kept},
                      {"dead_inputs", done.dead_inputs}});
  return layers;
}

/// Throws UsageError for flags that set what the targets choose.
void expect_free_choice(const PackingFlags& flags) {
  const SchemeFlags& scheme = flags.scheme;
  if (!flags.allocation.given()) return;
  if (scheme.bits || !scheme.layers.empty())
    throw UsageError("targets and --max-loss choose the widths themselves: leave --bits and --layer out");
  if (flags.allocation.chooses_steps() &&
      (!scheme.method.empty() || !scheme.sign.empty() || scheme.zero_point || !flags.calibration.ranges.empty()))
    throw UsageError(
        "--target-file chooses among steps of linear codes: leave --method, --scale-sign, --zero-point and --range "
        "out");
}

/// Where the images of targets and of precisions lie: `data`, else those of --calibrate, else for
/// targets what is found. Nothing without any.
std::optional<DataSource> image_source(const PackingFlags& flags, const std::string& data) {
  const std::string& given = data.empty() ? flags.calibration.data : data;
  if (flags.allocation.given()) return find_data(given, flags.calibration.unreadable);
  std::error_code error;
  if (!data.empty() && !std::filesystem::exists(data, error))
    fail<UsageError>("--data {}: no such file or folder", data);
  if (given.empty()) return std::nullopt;
  return DataSource(std::filesystem::path(given), flags.calibration.unreadable);
}

}  // namespace

void PackingFlags::validate() const {
  SchemeChoice::check(scheme);
  calibration.quantize_options("");
  expect_free_choice(*this);
}

void PackingFlags::expect_fit(const StateDict& model) const {
  SchemeChoice schemes(scheme, calibration.uses_gptq(), network_of(model));
  for (const Parameter& parameter : model.parameters)
    if (parameter.is_weight())
      nibblenet::validate(calibration.quantize_options(parameter.name), schemes(parameter), parameter.name);
  schemes.expect_all_used();
  calibration.expect_ranges_used(model);
}

nlohmann::json allocate_and_pack(const PackingFlags& flags, StateDict& dict, WeightPacker& packer, Backend& backend,
                                 DataSource data) {
  constexpr int64_t header_at_most = 10'000;
  int64_t other_bytes = header_at_most;
  for (const Parameter& parameter : dict.parameters)
    if (!parameter.is_weight()) other_bytes += static_cast<int64_t>(sizeof(float)) * parameter.shape().elements();
  Dataset images = flags.allocation.load_images(data, dict, packer.calibration_images());
  const std::string match = match_classes(images, dict, data.asked_for());
  print_match(match);
  AllocatedWeights allocated = allocate(
      flags.allocation, backend, dict, images, other_bytes,
      [&](const Parameter& weight) {
        return flags.allocation.chooses_steps() ? every_step(flags, weight)
                                                : every_width(flags, weight, network_of(dict));
      },
      [&](const Parameter& weight, const Candidate& candidate) {
        return packer(weight, candidate, [](int64_t) {
          if (interrupted()) throw Stopped("stopped; nothing was written");
        });
      });
  if (flags.allocation.chooses_steps()) {
    dict.metadata["range"] = "step, of each layer";
    if (flags.calibration.uses_gptq()) {
      const double rate_weight = flags.calibration.rate_weight.value_or(best_rate_weight);
      dict.metadata["rate_weight"] = fmt::format("{}", rate_weight);
      dict.metadata["refinements"] = std::to_string(flags.calibration.passes_of({.range = Range::step}));
    }
  }
  for (Parameter& parameter : dict.parameters)
    if (const auto chosen = allocated.weights.find(parameter.name); chosen != allocated.weights.end())
      parameter.value = std::move(chosen->second);
  allocated.json["data_set"] = data_set_json(images, match);
  return allocated.json;
}

PackingReport pack_by_flags(const PackingFlags& flags, StateDict& dict, const std::filesystem::path& input,
                            const std::string& data, Backend& backend) {
  const Stopwatch watch;
  nlohmann::json data_set;
  std::optional<Calibration> calibration = flags.calibration.obtain(input, dict, backend, &data_set);
  PackingReport report{.json = {{"calibration_seconds", watch.seconds()}, {"allocation", nullptr}}};
  const Calibration* measured = calibration ? &*calibration : nullptr;
  forget_precisions(dict.metadata);
  describe(dict.metadata, flags.calibration, measured);
  std::optional<DataSource> source = image_source(flags, data);
  std::optional<PrecisionImages> images;  // before the long work: errors come early
  if (source) images = load_precision_images(*source, dict, measured);
  WeightPacker packer = flags.calibration.packer(measured, backend);
  if (calibration) report.json["data_set"] = data_set;
  if (flags.allocation.given()) {
    report.json["allocation"] = allocate_and_pack(flags, dict, packer, backend, *std::move(source));
    report.json["data_set"] = report.json["allocation"]["data_set"];
  } else {
    SchemeChoice schemes(flags.scheme, flags.calibration.uses_gptq(), network_of(dict));
    report.layers = pack_all(dict, schemes, packer, calibration);
  }
  report.json["gptq"] = to_json(report.layers);
  report.json["precisions"] = nullptr;
  if (images) {
    PrecisionReport precisions = measure_and_describe(dict, *images, backend);
    report.json["precisions"] = std::move(precisions.json);
    report.lines.push_back(std::move(precisions.line));
  }
  if (calibration && calibration->ranges.empty())
    report.lines.emplace_back(
        "the calibration has no input ranges, which int8 would use: calibrate again with --calibrate DATA");
  return report;
}

}  // namespace nibblenet::tools
