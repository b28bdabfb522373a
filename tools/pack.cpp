#include <fmt/core.h>
#include <fnmatch.h>

#include <chrono>
#include <optional>

#include "engine/model/network.h"
#include "tools/common/calibration_options.h"
#include "tools/common/command_line.h"
#include "tools/common/default_schemes.h"
#include "tools/common/model_search.h"
#include "tools/common/progress.h"
#include "tools/common/report.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options {
  std::string model;
  int bits = 4;
  std::string method;
  std::string granularity;
  std::string scale;
  std::string sign;
  bool zero_point = false;
  std::vector<std::string> layers;
  std::string output;
  std::string json;
  CalibrationFlags calibration;
  DeviceOptions device;
};

/// "features.*=linear:8:channel": the layers a pattern names get this scheme.
struct Override {
  std::string pattern;
  Scheme scheme;
  bool used = false;
};

std::vector<Override> parse_overrides(const std::vector<std::string>& texts) {
  std::vector<Override> overrides;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      fail<UsageError>("--layer {}: expected PATTERN=METHOD:BITS:GRANULARITY, like 'features.*=linear:8:channel'",
                       text);
    overrides.push_back({text.substr(0, equals), parse_scheme(text.substr(equals + 1))});
  }
  return overrides;
}

bool matches(const std::string& pattern, const std::string& weight) {
  const std::string layer = weight.substr(0, weight.rfind('.'));
  return fnmatch(pattern.c_str(), layer.c_str(), 0) == 0 || fnmatch(pattern.c_str(), weight.c_str(), 0) == 0;
}

/// What the flags ask for when they say more than --bits.
Scheme chosen_scheme(const Options& options, bool bits_given) {
  const Method method = options.method.empty() ? Method::linear : parse_method(options.method);
  const MethodTraits& traits = traits_of(method);
  // A method of one width needs no --bits.
  Scheme scheme =
      default_scheme(method, !bits_given && traits.min_bits == traits.max_bits ? traits.min_bits : options.bits);
  if (!options.granularity.empty()) scheme.granularity = parse_granularity(options.granularity);
  if (!options.scale.empty()) scheme.scale = parse_scale_type(options.scale);
  if (options.zero_point) {
    scheme.zero_point = true;
    scheme.sign = ScaleSign::absolute;
  }
  if (!options.sign.empty()) scheme.sign = parse_scale_sign(options.sign);
  validate(scheme);
  return scheme;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::filesystem::path default_output(const std::filesystem::path& input, const Options& options, int bits) {
  std::string name = input.stem().string();
  if (!options.method.empty()) name += "_" + options.method;
  return input.parent_path() / fmt::format("{}_{}bit.safetensors", name, bits);
}

/// The scheme of every weight: the flags' or the measured default, and what --layer says otherwise.
class SchemeChoice {
 public:
  /// Throws UsageError for flags that make no scheme.
  SchemeChoice(const Options& options, bool bits_given)
      : measured_default_(options.method.empty() && options.granularity.empty() && options.scale.empty() &&
                          options.sign.empty() && !options.zero_point),
        calibrated_(options.calibration.compensates()),
        overrides_(parse_overrides(options.layers)),
        scheme_(measured_default_ ? Scheme{} : chosen_scheme(options, bits_given)),
        bits_(measured_default_ ? options.bits : scheme_.bits) {}

  int bits() const { return bits_; }

  Scheme operator()(const std::string& weight) {
    Scheme scheme = scheme_;
    if (measured_default_)
      scheme = calibrated_ ? calibrated_scheme_for(weight, bits_) : default_scheme_for(weight, bits_);
    for (Override& each : overrides_) {
      if (!matches(each.pattern, weight)) continue;
      scheme = each.scheme;
      each.used = true;
    }
    return scheme;
  }

  void expect_all_used() const {
    for (const Override& each : overrides_)
      if (!each.used)
        fail<UsageError>(
            "--layer {}=…: no layer of this name; there are features.0, .3, .6, .8, .10 and classifier.1, .4, .6",
            each.pattern);
  }

 private:
  bool measured_default_;
  bool calibrated_;
  std::vector<Override> overrides_;
  Scheme scheme_;
  int bits_;
};

/// What compensated rounding did to a layer.
struct LayerReport {
  std::string weight;
  Compensation compensation;
};

/// Packs every weight of `dict` in place; biases stay as they are.
std::vector<LayerReport> pack_weights(StateDict& dict, SchemeChoice& schemes, QuantizeOptions options,
                                      std::optional<Calibration> calibration, Backend& backend) {
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
    const TensorView<const float> weights = std::as_const(parameter).values().view();
    const Scheme scheme = schemes(parameter.name);
    const int64_t count = weights.elements();
    if (!calibration && options.range == Range::max) {
      parameter.value = backend.quantize(weights, scheme, parameter.name);
    } else {
      Compensation compensation;
      options.report = &compensation;
      options.on_columns = [&](int64_t columns, int64_t of) { show(count / of * columns); };
      options.moments = calibration ? &calibration->moments.at(parameter.name) : nullptr;
      parameter.value = quantize(weights, scheme, parameter.name, options);
      if (options.rounding == Rounding::compensated) reports.push_back({parameter.name, compensation});
      if (calibration) calibration->moments.erase(parameter.name);  // the largest takes 340 MB
    }
    done += count;
    show(0);
  }
  progress.finish();
  return reports;
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

void pack(const Options& options, bool bits_given) {
  SchemeChoice schemes(options, bits_given);
  const QuantizeOptions quantize_options = options.calibration.quantize_options();
  const auto backend = options.device.make();

  const std::filesystem::path input = find_model(options.model, ModelKind::fine_tuned);
  StateDict dict = load_model(input);
  if (dict.packed())
    fail<UsageError>("{} is packed already; pack the float model it came from, or tools/export it first",
                     input.string());
  const std::filesystem::path output =
      options.output.empty() ? default_output(input, options, schemes.bits()) : std::filesystem::path(options.output);

  const auto start = std::chrono::steady_clock::now();
  std::optional<Calibration> calibration = options.calibration.obtain(input, dict, *backend);
  const double calibration_seconds = seconds_since(start);
  describe(dict.metadata, options.calibration, calibration);
  const auto reports = pack_weights(dict, schemes, quantize_options, std::move(calibration), *backend);
  schemes.expect_all_used();
  save_state_dict(output, dict);
  const double seconds = seconds_since(start);

  const Network packed(*backend, load_state_dict(output));
  fmt::print("{}", size_table(packed.ledger(), packed.file_bytes(), packed.header_bytes()));
  const nlohmann::json compensation = print_reports(reports);
  fmt::print("packed {} into {} in {:.1f} s ({})\n", input.string(), output.string(), seconds, backend->description());
  write_json(options.json, {{"input", input.string()},
                            {"output", output.string()},
                            {"seconds", seconds},
                            {"calibration_seconds", calibration_seconds},
                            {"compensation", compensation},
                            {"size", size_json(packed.ledger(), packed.file_bytes(), packed.header_bytes())}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Stores the weights of a float model as packed n-bit codes; biases stay float32.", "pack");
  Options options;
  app.add_option("MODEL", options.model, "Float model (safetensors); without it the newest one in weights/");
  auto* bits = app.add_option("--bits", options.bits,
                              "Bits per weight, 2 to 8; alone it takes the scheme that measured best (docs/schemes.md)")
                   ->check(CLI::Range(2, 8))
                   ->capture_default_str();
  std::string methods = "Method:";
  for (const MethodTraits& traits : method_table())
    methods += fmt::format("\n  {}, {}-{} bits, {}: {}", traits.name, traits.min_bits, traits.max_bits,
                           to_string(traits.default_granularity), traits.summary);
  app.add_option("--method", options.method, methods)->type_name("METHOD");
  app.add_option("--granularity", options.granularity,
                 "tensor, channel, row, block:N, tile:RxC, or sorted[:B]; default: the method's")
      ->type_name("G");
  app.add_option("--scale", options.scale, "Type of the stored scales: f32 (default) or f16")->type_name("TYPE");
  app.add_option("--scale-sign", options.sign,
                 "absolute: the group's absolute maximum; signed: its element of largest magnitude (default where the "
                 "codebook is asymmetric)")
      ->type_name("SIGN");
  app.add_flag("--zero-point", options.zero_point,
               "linear only: affine codes over [min, max] with a stored zero point");
  app.add_option("--layer", options.layers,
                 "Scheme of the layers a pattern names, PATTERN=METHOD:BITS:GRANULARITY[:f16][:signed][:zero-point]; "
                 "repeatable, the last match counts")
      ->allow_extra_args(false)  // one value each time: what follows may be MODEL
      ->type_name("SPEC");
  app.add_option("-o,--output", options.output, "Packed model; default: MODEL's name with _<bits>bit beside MODEL")
      ->type_name("FILE");
  options.calibration.add_to(app);
  options.device.add_to(app);
  add_json_option(app, options.json);
  return run_tool(app, argc, argv, [&] {
    catch_interrupts();
    pack(options, bits->count() > 0);
  });
}
