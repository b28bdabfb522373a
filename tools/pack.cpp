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
           !allocation.given();
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

/// What compensated rounding did to a layer.
struct LayerReport {
  std::string weight;
  Compensation compensation;
};

/// Turns weights into codes as the flags say, on the device where it can, on the host where a calibration or a search
/// for ranges has a say.
class WeightPacker {
 public:
  WeightPacker(QuantizeOptions options, std::optional<Calibration> calibration, Backend& backend)
      : options_(std::move(options)), calibration_(std::move(calibration)), backend_(backend) {}

  /// `on_weights` hears how many of the tensor's weights are done. `report`, unless null, hears of compensation.
  PackedTensor operator()(const Parameter& parameter, const Scheme& scheme,
                          const std::function<void(int64_t)>& on_weights = {}, LayerReport* report = nullptr) const {
    const TensorView<const float> weights = parameter.values().view();
    if (!calibration_ && options_.range == Range::max) return backend_.quantize(weights, scheme, parameter.name);
    LayerReport own;
    LayerReport& heard = report != nullptr ? *report : own;
    heard.weight = parameter.name;
    QuantizeOptions options = options_;
    options.report = &heard.compensation;
    options.moments = calibration_ ? &calibration_->moments.at(parameter.name) : nullptr;
    options.on_columns = [&](int64_t columns, int64_t of) {
      if (interrupted()) throw Stopped("stopped; nothing was written");
      if (on_weights) on_weights(weights.elements() / of * columns);
    };
    return quantize(weights, scheme, parameter.name, options);
  }

  bool compensates() const { return options_.rounding == Rounding::compensated; }
  /// A weight that will not be asked for again: the moments of the largest take 340 MB.
  void forget(const std::string& weight) {
    if (calibration_) calibration_->moments.erase(weight);
  }

 private:
  QuantizeOptions options_;
  std::optional<Calibration> calibration_;
  Backend& backend_;
};

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
    parameter.value = packer(parameter, schemes(parameter.name), show, &report);
    if (packer.compensates()) reports.push_back(std::move(report));
    packer.forget(parameter.name);
    done += count;
    show(0);
  }
  progress.finish();
  return reports;
}

/// The scheme that the flags give a weight at each width that there is.
std::vector<Scheme> schemes_of_every_width(const Options& options, const std::string& weight) {
  SchemeFlags flags = options.scheme;
  const MethodTraits& traits = traits_of(flags.method.empty() ? Method::linear : parse_method(flags.method));
  std::vector<Scheme> schemes;
  for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) {
    flags.bits = bits;
    schemes.push_back(SchemeChoice(flags, options.calibration.compensates())(weight));
  }
  return schemes;
}

/// Packs every weight of `dict` in place, each at the width that was chosen for it. Returns the report of the choice.
nlohmann::json allocate_and_pack(const Options& options, StateDict& dict, const WeightPacker& packer,
                                 Backend& backend) {
  constexpr int64_t header_at_most = 10'000;
  int64_t other_bytes = header_at_most;
  for (const Parameter& parameter : dict.parameters)
    if (parameter.shape().rank() < 2) other_bytes += static_cast<int64_t>(sizeof(float)) * parameter.shape().elements();
  const std::filesystem::path data = find_data(options.data.empty() ? options.calibration.data : options.data);
  AllocatedBits allocated = allocate_bits(
      options.allocation, backend, dict, load_dataset(data, Split::train, 2 * options.allocation.images), other_bytes,
      [&](const std::string& weight) { return schemes_of_every_width(options, weight); },
      [&](const Parameter& weight, const Scheme& scheme) { return packer(weight, scheme); });
  for (Parameter& parameter : dict.parameters)
    if (const auto chosen = allocated.weights.find(parameter.name); chosen != allocated.weights.end())
      parameter.value = std::move(chosen->second);
  return allocated.json;
}

nlohmann::json print_reports(const std::vector<LayerReport>& reports) {
  nlohmann::json layers = nlohmann::json::array();
  if (!reports.empty())
    fmt::print("{:<20} {:>14} {:>14} {:>8} {:>8} {:>12} {:>12}\n", "output error", "nearest", "compensated", "ratio",
               "damping", "rows kept", "dead inputs");
  for (const auto& [weight, done] : reports) {
    fmt::print("{:<20} {:>14.5g} {:>14.5g} {:>8.3f} {:>8.2g} {:>12} {:>12}\n", weight, done.nearest_error, done.error,
               done.nearest_error > 0 ? done.error / done.nearest_error : 1.0, done.damping, done.rows_kept,
               done.dead_inputs);
    layers.push_back({{"weight", weight},
                      {"nearest_error", done.nearest_error},
                      {"error", done.error},
                      {"damping", done.damping},
                      {"rows_kept", done.rows_kept},
                      {"dead_inputs", done.dead_inputs}});
  }
  return layers;
}

/// The tables of what was written, read back as any tool would. `json` holds what else there is to report.
void show_result(const Options& options, const std::filesystem::path& input, const std::filesystem::path& output,
                 double seconds, Backend& backend, nlohmann::json json = nlohmann::json::object()) {
  const Network packed(backend, load_state_dict(output));
  const auto file_bytes = static_cast<double>(packed.file_bytes());
  if (options.allocation.target_size > 0 && file_bytes > options.allocation.target_size * 1e6)
    fail<Error>("{} became {}, more than --target-size", output.string(), megabytes(file_bytes));
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

void pack(const Options& options) {
  SchemeChoice schemes(options.scheme, options.calibration.compensates());
  const QuantizeOptions quantize_options = options.calibration.quantize_options();
  if (options.allocation.given() && (options.scheme.bits || !options.scheme.layers.empty()))
    throw UsageError(
        "--target-bits, --target-size and --max-loss choose the widths themselves: leave --bits and --layer out");
  const auto backend = options.device.make();

  const std::filesystem::path input = find_model(options.model, ModelKind::fine_tuned);
  StateDict dict = load_model(input, options.checksums);
  if (dict.packed() && options.only_rewrites()) return repack(options, input, dict, *backend);
  if (dict.packed())
    fail<UsageError>("{} is packed already; pack the float model it came from, or tools/export it first",
                     input.string());
  const std::filesystem::path output =
      options.output.empty() ? default_output(input, options, schemes.bits()) : std::filesystem::path(options.output);

  for (const Parameter& parameter : dict.parameters)  // before the long work: a pattern that names nothing is refused
    if (parameter.shape().rank() > 1) schemes(parameter.name);
  schemes.expect_all_used();

  const auto start = std::chrono::steady_clock::now();
  std::optional<Calibration> calibration = options.calibration.obtain(input, dict, *backend);
  nlohmann::json json = {{"calibration_seconds", seconds_since(start)}, {"allocation", nullptr}};
  describe(dict.metadata, options.calibration, calibration);
  WeightPacker packer(quantize_options, std::move(calibration), *backend);
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
  app.add_option("--data", options.data,
                 std::string("For --target-bits and its like, without --calibrate. ") + data_help)
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
    pack(options);
  });
}
