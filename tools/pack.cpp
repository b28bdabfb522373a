#include <fmt/core.h>

#include <chrono>
#include <optional>

#include "engine/model/network.h"
#include "tools/common/bit_allocation.h"
#include "tools/common/calibration_options.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/model_search.h"
#include "tools/common/progress.h"
#include "tools/common/report.h"
#include "tools/common/scheme_options.h"
#include "tools/common/weight_packer.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options {
  std::string model;
  SchemeFlags scheme;
  CalibrationFlags calibration;
  AllocationOptions allocation;
  std::string data;
  bool compress = false;
  bool rewrite = false;  ///< --compress or --no-compress was given
  Checksums checksums = Checksums::warn;
  std::string output;
  std::string json;
  DeviceOptions device;

  Compression compression() const { return compress ? Compression::rans : Compression::none; }
  /// Nothing but --compress or --no-compress: a packed model may be written again.
  bool only_rewrites() const {
    return rewrite && scheme.only_bits() && !scheme.bits && scheme.layers.empty() && !calibration.calibrated() &&
           calibration.ranges.empty() && !allocation.given();
  }
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::filesystem::path default_output(const std::filesystem::path& input, const Options& options, int bits) {
  std::string name = input.stem().string();
  if (!options.scheme.method.empty()) name += "_" + options.scheme.method;
  const std::string width = options.allocation.given() ? "mixed" : fmt::format("{}bit", bits);
  return input.parent_path() / fmt::format("{}_{}.safetensors", name, width);
}

/// Packs every weight of `dict` in place; biases stay as they are.
std::vector<LayerReport> pack_weights(StateDict& dict, SchemeChoice& schemes, WeightPacker& packer) {
  int64_t total = 0, done = 0;
  for (const Parameter& parameter : dict.parameters)
    total += parameter.shape().rank() > 1 ? parameter.shape().elements() : 0;
  std::vector<LayerReport> reports;
  Progress progress("packing", "weights");
  for (Parameter& parameter : dict.parameters) {
    if (parameter.shape().rank() < 2) continue;
    const auto show = [&](int64_t weights) {
      if (interrupted()) throw Stopped("stopped; nothing was written");
      progress.update(done + weights, total, parameter.name);
    };
    show(0);
    const int64_t count = parameter.shape().elements();
    LayerReport report;
    parameter.value = packer(parameter, {schemes(parameter.name)}, show, &report);
    if (packer.compensates()) reports.push_back(std::move(report));
    packer.forget(parameter.name);
    done += count;
    show(0);
  }
  progress.finish();
  return reports;
}

/// What there is to choose from for a weight: the scheme that the flags give it, at each width that there is.
std::vector<Candidate> every_width(const Options& options, const Parameter& weight) {
  SchemeFlags flags = options.scheme;
  const MethodTraits& traits = traits_of(flags.method.empty() ? Method::linear : parse_method(flags.method));
  std::vector<Candidate> candidates;
  for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) {
    flags.bits = bits;
    candidates.push_back({SchemeChoice(flags, options.calibration.compensates())(weight.name)});
  }
  return candidates;
}

/// The same for --target-rest: `linear` at steps about a factor of the square root of 2 apart, each at the narrowest
/// width that reaches the largest weight. What the codes take in the file hangs on the step, not on the width.
std::vector<Candidate> every_step(const Options& options, const Parameter& weight) {
  Scheme scheme = default_scheme(Method::linear, 8);
  scheme.granularity = parse_granularity(options.scheme.granularity.empty() ? "channel" : options.scheme.granularity);
  scheme.scale = parse_scale_type(options.scheme.scale.empty() ? "f16" : options.scheme.scale);
  const float reach = largest_deviation(weight.values().view(), scheme.granularity);
  const MethodTraits& traits = traits_of(scheme.method);
  std::vector<Candidate> candidates;
  for (const float step : {0.5F, 0.7F, 1.0F, 1.4F, 2.0F, 2.8F, 4.0F, 5.6F}) {
    scheme.bits = traits.min_bits;
    while (scheme.bits < traits.max_bits && make_codebook(scheme.method, scheme.bits).scale_to * step < reach)
      ++scheme.bits;
    candidates.push_back({scheme, step});
  }
  return candidates;
}

/// Packs every weight of `dict` in place, each as was chosen for it. Returns the report of the choice.
nlohmann::json allocate_and_pack(const Options& options, StateDict& dict, WeightPacker& packer, Backend& backend) {
  constexpr int64_t header_at_most = 10'000;
  int64_t other_bytes = header_at_most;
  for (const Parameter& parameter : dict.parameters)
    if (parameter.shape().rank() < 2) other_bytes += static_cast<int64_t>(sizeof(float)) * parameter.shape().elements();
  const std::filesystem::path data = find_data(options.data.empty() ? options.calibration.data : options.data);
  AllocatedWeights allocated = allocate(
      options.allocation, backend, dict, load_dataset(data, Split::train, 2 * options.allocation.images), other_bytes,
      [&](const Parameter& weight) {
        return options.allocation.chooses_steps() ? every_step(options, weight) : every_width(options, weight);
      },
      [&](const Parameter& weight, const Candidate& candidate) { return packer(weight, candidate); });
  for (Parameter& parameter : dict.parameters)
    if (const auto chosen = allocated.weights.find(parameter.name); chosen != allocated.weights.end())
      parameter.value = std::move(chosen->second);
  return allocated.json;
}

/// The tables of what was written, read back as any tool would. `json` holds what else there is to report.
void show_result(const Options& options, const std::filesystem::path& input, const std::filesystem::path& output,
                 double seconds, Backend& backend, nlohmann::json json = nlohmann::json::object()) {
  const Network packed(backend, load_state_dict(output));
  const auto file_bytes = static_cast<double>(packed.file_bytes());
  if (const double target = options.allocation.file_target(); target > 0 && file_bytes > target * 1e6)
    fail<Error>("{} became {}, more than the target", output.string(), megabytes(file_bytes));
  fmt::print("{}", size_table(packed.ledger(), packed.file_bytes(), packed.header_bytes()));
  fmt::print("packed {} into {} in {:.1f} s ({})\n", input.string(), output.string(), seconds, backend.description());
  json["input"] = input.string();
  json["output"] = output.string();
  json["seconds"] = seconds;
  json["compressed"] = options.compress;
  json["size"] = size_json(packed.ledger(), packed.file_bytes(), packed.header_bytes());
  write_json(options.json, json);
}

/// Writes a packed model again with its codes compressed or not; not a bit of them changes.
void repack(const Options& options, const std::filesystem::path& input, const StateDict& dict, Backend& backend) {
  const auto start = std::chrono::steady_clock::now();
  const std::filesystem::path output =
      !options.output.empty() ? std::filesystem::path(options.output)
                              : input.parent_path() / fmt::format("{}_{}.safetensors", input.stem().string(),
                                                                  options.compress ? "compressed" : "uncompressed");
  save_state_dict(output, dict, options.compression());
  show_result(options, input, output, seconds_since(start), backend);
}

/// Throws UsageError for flags that say what the targets are to choose.
void expect_free_choice(const Options& options) {
  const SchemeFlags& scheme = options.scheme;
  if (!options.allocation.given()) return;
  if (scheme.bits || !scheme.layers.empty())
    throw UsageError("targets and --max-loss choose the widths themselves: leave --bits and --layer out");
  if (options.allocation.chooses_steps() &&
      (!scheme.method.empty() || !scheme.sign.empty() || scheme.zero_point || !options.calibration.ranges.empty()))
    throw UsageError(
        "--target-rest chooses among steps of linear codes: leave --method, --scale-sign, --zero-point and --range "
        "out");
}

void pack(const Options& options) {
  SchemeChoice schemes(options.scheme, options.calibration.compensates());
  expect_free_choice(options);
  const auto backend = options.device.make();

  const std::filesystem::path input = find_model(options.model, ModelKind::fine_tuned);
  StateDict dict = load_model(input, options.checksums);
  if (dict.packed() && options.only_rewrites()) return repack(options, input, dict, *backend);
  if (dict.packed())
    fail<UsageError>("{} is packed already; pack the float model it came from, or tools/export it first",
                     input.string());
  const std::filesystem::path output =
      options.output.empty() ? default_output(input, options, schemes.bits()) : std::filesystem::path(options.output);

  for (const Parameter& parameter : dict.parameters)  // before the long work: what does not fit is refused
    if (parameter.shape().rank() > 1)
      validate(options.calibration.quantize_options(parameter.name), schemes(parameter.name), parameter.name);
  schemes.expect_all_used();
  options.calibration.expect_ranges_used(dict);

  const auto start = std::chrono::steady_clock::now();
  std::optional<Calibration> calibration = options.calibration.obtain(input, dict, *backend);
  nlohmann::json json = {{"calibration_seconds", seconds_since(start)}, {"allocation", nullptr}};
  describe(dict.metadata, options.calibration, calibration);
  if (options.allocation.chooses_steps()) dict.metadata["range"] = "step, of each layer";
  WeightPacker packer(options.calibration, std::move(calibration), *backend);
  std::vector<LayerReport> reports;
  if (options.allocation.given())
    json["allocation"] = allocate_and_pack(options, dict, packer, *backend);
  else
    reports = pack_weights(dict, schemes, packer);
  save_state_dict(output, dict, options.compression());
  const double seconds = seconds_since(start);
  json["compensation"] = print_reports(reports);
  show_result(options, input, output, seconds, *backend, std::move(json));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Stores the weights of a float model as packed n-bit codes; biases stay float32.", "pack");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float model ({}); without it the newest one in weights/", model_files));
  options.scheme.add_to(app);
  app.add_option("-o,--output", options.output,
                 "Packed model; default: MODEL's name with _<bits>bit, or _mixed, beside MODEL")
      ->type_name("FILE");
  options.calibration.add_to(app);
  options.allocation.add_to(app);
  app.add_option("--data", options.data, std::string("For targets and --max-loss, without --calibrate. ") + data_help)
      ->type_name("PATH");
  auto* compress = app.add_flag(
      "--compress,!--no-compress", options.compress,
      "Entropy-code the codes (rANS, no loss): a smaller file, decoded on loading, so that the resident size stays the "
      "same. On a packed MODEL, --compress or --no-compress alone rewrites it with the same codes; its default output "
      "is MODEL's name with _compressed or _uncompressed");
  add_strict_option(app, options.checksums);
  options.device.add_to(app);
  add_json_option(app, options.json);
  return run_tool(app, argc, argv, [&] {
    catch_interrupts();
    options.rewrite = compress->count() > 0;
    if (options.allocation.chooses_steps()) options.compress = true;
    options.allocation.compressed = options.compress;
    pack(options);
  });
}
