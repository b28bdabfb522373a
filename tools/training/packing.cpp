#include "tools/training/packing.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>

#include "engine/core/stopwatch.h"
#include "engine/quant/size.h"
#include "engine/quant/trellis.h"
#include "layers/network/class_names.h"
#include "layers/network/precision_choice.h"
#include "tools/common/command_line.h"
#include "tools/common/progress.h"
#include "tools/common/version.h"
#include "tools/training/measurement_file.h"
#include "tools/training/precision_report.h"

namespace nibblenet::tools {
namespace {

/// The candidates of a weight: its scheme by the flags, at every width of the method.
std::vector<Candidate> every_width(const PackingFlags& flags, const Parameter& weight, const StateDict& model) {
  SchemeFlags scheme = flags.scheme;
  const Method method = scheme.method.empty() ? Method::linear : parse_method(scheme.method);
  std::vector<Candidate> candidates;
  for (const Scheme& width : schemes_of_every_width(method)) {
    scheme.bits = width.bits_per_code();
    const Scheme chosen = SchemeChoice(scheme, flags.calibration.uses_gptq(), model)(weight);
    if (candidates.empty() || candidates.back().scheme != chosen) candidates.push_back({chosen});
  }
  return candidates;
}

/// `scheme` with the granularity and the scales of the flags, where these say nothing with one fp16
/// scale a channel.
Scheme with_flags(Scheme scheme, const PackingFlags& flags) {
  scheme.granularity = parse_granularity(flags.scheme.granularity.empty() ? "channel" : flags.scheme.granularity);
  scheme.scale = parse_scale_type(flags.scheme.scale.empty() ? "f16" : flags.scheme.scale);
  return scheme;
}

/// Entropy-coded candidates of a weight: `linear` at 16 steps, each about sqrt(2) times the one
/// before. They are closer from 1 to 2, where the largest layer's size is decided. Each has the
/// narrowest width that reaches the largest weight: the size in the file depends on the step, not
/// on the width.
std::vector<Candidate> every_step(const PackingFlags& flags, const Parameter& weight) {
  Scheme scheme = with_flags(default_scheme(Method::linear, 8), flags);
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

/// Whether a weight's candidates by the flags include trellis strings.
bool may_be_trellis(const PackingFlags& flags, const Parameter& weight) {
  const bool by_channel = with_flags({}, flags).granularity.kind == Granularity::Kind::channel;
  return by_channel && weight.shape()[0] >= trellis_granule;
}

/// Candidates of a weight that take as many bytes in memory as in the file: trellis strings of
/// every rate, kmeans up to 4 bits, linear above that. With `rotated`, all have rotated inputs.
std::vector<Candidate> every_fixed_rate(const PackingFlags& flags, const Parameter& weight, const StateDict& model,
                                        bool rotated) {
  std::vector<Candidate> candidates;
  const auto add = [&](Scheme scheme) {
    scheme = with_flags(scheme, flags);
    scheme.rotated = rotated ? 1 : 0;
    candidates.push_back({fitted(scheme, model, weight)});
  };
  if (may_be_trellis(flags, weight)) std::ranges::for_each(schemes_of_every_width(Method::trellis), add);
  for (int bits = 2; bits <= 8; ++bits) add(default_scheme(bits <= 4 ? Method::kmeans : Method::linear, bits));
  return candidates;
}

/// Two candidates of 2 bits to measure whether rotating a weight's inputs helps; none where they
/// cannot be rotated.
std::vector<Candidate> plain_and_rotated(const PackingFlags& flags, const Parameter& weight, const StateDict& model) {
  Scheme scheme =
      with_flags(default_scheme(may_be_trellis(flags, weight) ? Method::trellis : Method::kmeans, 2), flags);
  Scheme rotated = scheme;
  rotated.rotated = 1;
  rotated = fitted(rotated, model, weight);
  if (!rotated.is_rotated()) return {};
  return {{scheme}, {rotated}};
}

/// The candidates of a weight for targets in bytes. Those that exceed the targets alone are left
/// out, but for the smallest. Their size by the formula is exact enough for that.
std::vector<Candidate> every_scheme(const PackingFlags& flags, const Parameter& weight, const StateDict& model,
                                    bool rotated) {
  const AllocationOptions& targets = flags.allocation;
  std::vector<Candidate> candidates = every_fixed_rate(flags, weight, model, rotated);
  const double most = 1e6 * std::min(targets.target_file > 0 ? targets.target_file : INFINITY,
                                     targets.target_resident > 0 ? targets.target_resident : INFINITY);
  const auto bytes = [&](const Candidate& candidate) {
    return estimated_size(candidate.scheme, weight.shape()).total();
  };
  const Candidate smallest = *std::ranges::min_element(candidates, {}, bytes);
  std::erase_if(candidates, [&](const Candidate& each) { return bytes(each) > most && each != smallest; });
  if (targets.target_file > 0) std::ranges::move(every_step(flags, weight), std::back_inserter(candidates));
  return candidates;
}

/// pack_weights() with a line of progress. A Hessian that will not be asked for again is let go:
/// the largest takes 340 MB.
std::vector<LayerReport> pack_all(StateDict& dict, SchemeChoice& schemes, WeightPacker& packer,
                                  std::optional<Calibration>& calibration, Ranks* ranks, const WeightOwners& owners) {
  Progress progress("packing", "weights");
  std::vector<LayerReport> reports = pack_weights(
      dict, std::ref(schemes), packer,
      [&](int64_t done, int64_t total, const std::string& weight) { progress.update_or_stop(done, total, weight); },
      [&](const std::string& weight) {
        if (calibration) calibration->hessians.erase(weight);
      },
      ranks, owners);
  progress.finish();
  return reports;
}

/// Gives weights that no --layer names the codes that they have in `packed`, and says in the
/// metadata which are packed anew: how codes were chosen is told of these alone.
void keep_other_layers(StateDict& dict, const StateDict& packed, SchemeChoice& schemes) {
  std::string anew;
  for (Parameter& parameter : dict.parameters) {
    const Parameter& before = packed.at(parameter.name);
    if (!before.packed()) continue;
    if (schemes.overridden(parameter.name))
      anew += (anew.empty() ? "" : ", ") + parameter.name.substr(0, parameter.name.rfind('.'));
    else
      parameter.value = before.packed_values();
  }
  dict.metadata["packed_anew"] = anew;
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

/// What measured choices depend on. The metadata of `dict` tell how codes are chosen: describe().
MeasurementFile::Facts facts_of(const StateDict& dict, const Dataset& images, const Backend& backend) {
  std::string rounding;
  for (const char* key :
       {"rounding", "range", "column_order", "refinements", "rate_weight", "calibration_images",
        "calibration_positions", "calibration_seed", "calibration_image_size", "calibration_fingerprint"})
    if (const auto found = dict.metadata.find(key); found != dict.metadata.end())
      rounding += fmt::format("{}={} ", key, found->second);
  return {{"build", version_json().dump()},
          {"device", backend.description()},
          {"model", fingerprint_of(dict)},
          {"calibration", rounding},
          {"images", fingerprint_of(images)}};
}

/// Throws UsageError for flags that set what the targets choose.
void expect_free_choice(const PackingFlags& flags) {
  const SchemeFlags& scheme = flags.scheme;
  if (!flags.allocation.given()) {
    if (!flags.allocation.measurements.empty())
      throw UsageError("--measurements keeps what a target or --max-loss measures: give one, or leave it out");
    return;
  }
  if (scheme.bits || !scheme.layers.empty())
    throw UsageError("targets and --max-loss choose the widths themselves: leave --bits and --layer out");
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

bool PackingFlags::chooses_methods() const {
  return allocation.limits_bytes() && scheme.method.empty() && scheme.sign.empty() && !scheme.zero_point &&
         calibration.ranges.empty();
}

void PackingFlags::validate() const {
  SchemeChoice::check(scheme);
  calibration.quantize_options("");
  expect_free_choice(*this);
}

void PackingFlags::expect_fit(const StateDict& model) const {
  SchemeChoice schemes(scheme, calibration.uses_gptq(), model);
  for (const Parameter& parameter : model.parameters)
    if (parameter.is_weight())
      nibblenet::validate(calibration.quantize_options(parameter.name), schemes(parameter), parameter.name);
  schemes.expect_all_used();
  calibration.expect_ranges_used(model);
}

nlohmann::json allocate_and_pack(const PackingFlags& flags, StateDict& dict, WeightPacker& packer, Backend& backend,
                                 DataSource data) {
  constexpr int64_t header_at_most = 10'000;
  constexpr int64_t most_weights_with_passes = int64_t{1} << 24;  // of a trellis that is only measured: seconds a pass
  OtherBytes others;
  for (const Parameter& parameter : dict.parameters)
    if (!parameter.is_weight()) others.resident += static_cast<int64_t>(sizeof(float)) * parameter.shape().elements();
  others.file = header_at_most + others.resident;
  Dataset images = flags.allocation.load_images(data, dict, packer.calibration_images());
  const std::string match = match_classes(images, dict, data.asked_for());
  print_match(match);
  const auto stop_if_asked = [](int64_t) {
    if (interrupted()) throw Stopped("stopped; nothing was written");
  };
  const QuantizeWeight quantize = remembered(
      [&](const Parameter& weight, const Candidate& candidate) { return packer(weight, candidate, stop_if_asked); });
  const QuantizeWeight draft = [&](const Parameter& weight, const Candidate& candidate) {
    const bool large = candidate.scheme.is_trellis() && weight.shape().elements() > most_weights_with_passes;
    return large ? packer.without_passes(weight, candidate, stop_if_asked) : quantize(weight, candidate);
  };
  std::optional<MeasurementFile> file;
  if (!flags.allocation.measurements.empty())
    file.emplace(flags.allocation.measurements, facts_of(dict, images, backend));
  if (file && file->found() > 0) fmt::print("{} choices are in {}\n", file->found(), file->path().string());
  ChoiceRecord of_this_run;
  ChoiceRecord* record = file ? &file->record() : &of_this_run;
  Rotations rotations;  // where the method is chosen, too
  if (flags.chooses_methods() && !flags.scheme.rotate)
    rotations = choose_rotations(
        backend, dict, images, [&](const Parameter& weight) { return plain_and_rotated(flags, weight, dict); }, draft,
        record);
  AllocatedWeights allocated = allocate(
      flags.allocation, backend, dict, images, others,
      [&](const Parameter& weight) {
        if (!flags.chooses_methods()) return every_width(flags, weight, dict);
        return every_scheme(flags, weight, dict, flags.scheme.rotate || rotations.weights.contains(weight.name));
      },
      draft, quantize, record);
  if (flags.implies_compression()) {
    dict.metadata["range"] = "of each layer";
    if (flags.calibration.uses_gptq()) {
      const double rate_weight = flags.calibration.rate_weight.value_or(best_rate_weight);
      dict.metadata["rate_weight"] = fmt::format("{}", rate_weight);
      const int others_passes = flags.calibration.passes_of({}),
                step_passes = flags.calibration.passes_of({.range = Range::step});
      dict.metadata["refinements"] =
          others_passes == step_passes ? std::to_string(step_passes)
                                       : fmt::format("{}, and {} where ranges go by step", others_passes, step_passes);
    }
  }
  for (Parameter& parameter : dict.parameters)
    if (const auto chosen = allocated.weights.find(parameter.name); chosen != allocated.weights.end())
      parameter.value = std::move(chosen->second);
  allocated.json["rotations"] = std::move(rotations.json);
  allocated.json["data_set"] = data_set_json(images, match);
  return allocated.json;
}

PackingReport pack_by_flags(const PackingFlags& flags, StateDict& dict, const std::filesystem::path& input,
                            const std::string& data, Backend& backend, const StateDict* packed,
                            PackingRanks* together) {
  const Stopwatch watch;
  if (together != nullptr && flags.allocation.given())
    throw UsageError(
        "targets and --max-loss choose in one process: let the ranks write --save-calibration, and start pack without "
        "mpirun or srun with --calibration");
  Ranks* ranks = together != nullptr ? &together->group.ranks() : nullptr;
  std::optional<CalibratingRanks> calibrating;
  if (ranks != nullptr)
    calibrating.emplace(CalibratingRanks{*ranks,
                                         [&](const Dataset& images) {
                                           together->facts.emplace_back("data set", fingerprint_of_images(images));
                                           together->group.agree(together->facts);
                                         },
                                         owners_of_weights(dict, flags.calibration.images, ranks->size())});
  nlohmann::json data_set;
  std::optional<Calibration> calibration =
      flags.calibration.obtain(input, dict, backend, &data_set, calibrating ? &*calibrating : nullptr);
  if (together != nullptr && !together->group.agreed()) together->group.agree(together->facts);
  PackingReport report{.json = {{"calibration_seconds", watch.seconds()}, {"allocation", nullptr}}};
  const Calibration* measured = calibration ? &*calibration : nullptr;
  forget_precisions(dict.metadata);
  if (packed != nullptr)
    for (const char* key : {"rounding", "column_order", "refinements", "range", "rate_weight"})
      dict.metadata.erase(key);
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
    SchemeChoice schemes(flags.scheme, flags.calibration.uses_gptq(), dict);
    if (packed != nullptr) keep_other_layers(dict, *packed, schemes);
    report.layers =
        pack_all(dict, schemes, packer, calibration, ranks, calibrating ? calibrating->owners : WeightOwners());
  }
  if (together != nullptr && !together->group.first()) return report;
  report.json["gptq"] = to_json(report.layers);
  report.json["precisions"] = nullptr;
  halve_input_steps(dict);
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
