#include <fmt/core.h>
#include <fnmatch.h>

#include <chrono>

#include "engine/model/network.h"
#include "tools/common/bit_allocation.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
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
  bool compress = false;
  bool rewrite = false;  ///< --compress or --no-compress was given: a packed model may be written again
  std::vector<std::string> layers;
  AllocationOptions allocation;
  std::string data;
  std::string output;
  std::string json;
  DeviceOptions device;
  Checksums checksums = Checksums::warn;
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

/// What --target-bits and its like choose from: every width of the scheme that the flags ask for, or the measured
/// defaults.
std::vector<Scheme> schemes_of_every_width(const std::string& weight, const Scheme* one_scheme) {
  std::vector<Scheme> schemes;
  const MethodTraits& traits = traits_of(one_scheme != nullptr ? one_scheme->method : Method::linear);
  for (int bits = traits.min_bits; bits <= traits.max_bits; ++bits) {
    schemes.push_back(one_scheme != nullptr ? *one_scheme : default_scheme_for(weight, bits));
    schemes.back().bits = bits;
  }
  return schemes;
}

AllocatedBits allocate(const Options& options, Backend& backend, const StateDict& dict, const Scheme* one_scheme) {
  constexpr int64_t header_at_most = 10'000;
  int64_t other_bytes = header_at_most;
  for (const Parameter& parameter : dict.parameters)
    if (parameter.shape().rank() < 2) other_bytes += static_cast<int64_t>(sizeof(float)) * parameter.shape().elements();
  return allocate_bits(
      options.allocation, backend, dict,
      load_dataset(find_data(options.data), Split::train, 2 * options.allocation.images), other_bytes,
      [&](const std::string& weight) { return schemes_of_every_width(weight, one_scheme); },
      [&](const Parameter& weight, const Scheme& scheme) {
        return backend.quantize(weight.values().view(), scheme, weight.name);
      });
}

std::filesystem::path default_output(const std::filesystem::path& input, const Options& options, int bits) {
  std::string name = input.stem().string();
  if (!options.method.empty()) name += "_" + options.method;
  return input.parent_path() / fmt::format("{}_{}bit.safetensors", name, bits);
}

Compression compression_of(const Options& options) { return options.compress ? Compression::rans : Compression::none; }

/// The tables and JSON of what was written, read back as any tool would.
void show_result(const Options& options, const std::filesystem::path& input, const std::filesystem::path& output,
                 double seconds, Backend& backend, const nlohmann::json& allocation = nullptr) {
  const Network packed(backend, load_state_dict(output));
  const auto file_bytes = static_cast<double>(packed.file_bytes());
  if (options.allocation.target_size > 0 && file_bytes > options.allocation.target_size * 1e6)
    fail<Error>("{} became {}, more than --target-size", output.string(), megabytes(file_bytes));
  fmt::print("{}", size_table(packed.ledger(), packed.file_bytes(), packed.header_bytes()));
  fmt::print("packed {} into {} in {:.1f} s ({})\n", input.string(), output.string(), seconds, backend.description());
  write_json(options.json, {{"input", input.string()},
                            {"output", output.string()},
                            {"seconds", seconds},
                            {"compressed", options.compress},
                            {"allocation", allocation},
                            {"size", size_json(packed.ledger(), packed.file_bytes(), packed.header_bytes())}});
}

/// Writes a packed model again with its codes compressed or not; not a bit of them changes.
void repack(const Options& options, const std::filesystem::path& input, const StateDict& dict, Backend& backend) {
  const auto start = std::chrono::steady_clock::now();
  const std::filesystem::path output =
      !options.output.empty() ? std::filesystem::path(options.output)
                              : input.parent_path() / fmt::format("{}_{}.safetensors", input.stem().string(),
                                                                  options.compress ? "compressed" : "uncompressed");
  save_state_dict(output, dict, compression_of(options));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  show_result(options, input, output, seconds, backend);
}

void pack(const Options& options, bool bits_given) {
  const bool measured_default = options.method.empty() && options.granularity.empty() && options.scale.empty() &&
                                options.sign.empty() && !options.zero_point;
  std::vector<Override> overrides = parse_overrides(options.layers);
  const Scheme one_scheme = measured_default ? Scheme{} : chosen_scheme(options, bits_given);
  const int bits = measured_default ? options.bits : one_scheme.bits;
  const auto backend = options.device.make();

  const std::filesystem::path input = find_model(options.model, ModelKind::fine_tuned);
  StateDict dict = load_model(input, options.checksums);
  if (dict.packed() && options.rewrite && measured_default && !bits_given && overrides.empty())
    return repack(options, input, dict, *backend);
  if (dict.packed())
    fail<UsageError>(
        "{} is packed already; pack the float model it came from, or tools/export it first; --compress or "
        "--no-compress alone rewrites it with the same codes",
        input.string());
  const std::filesystem::path output =
      options.output.empty() ? default_output(input, options, bits) : std::filesystem::path(options.output);

  const auto start = std::chrono::steady_clock::now();
  AllocatedBits allocated;
  if (options.allocation.given()) {
    if (bits_given || !overrides.empty())
      throw UsageError(
          "--target-bits, --target-size and --max-loss choose the widths themselves: leave --bits and --layer out");
    allocated = allocate(options, *backend, dict, measured_default ? nullptr : &one_scheme);
  }
  int64_t total = 0, done = 0;
  for (const Parameter& parameter : dict.parameters)
    total += parameter.shape().rank() > 1 ? parameter.shape().elements() : 0;
  Progress progress("packing", "weights");
  for (Parameter& parameter : dict.parameters) {
    if (parameter.shape().rank() < 2) continue;  // biases stay as they are
    if (interrupted()) throw Stopped("stopped; nothing was written");
    Scheme scheme = measured_default ? default_scheme_for(parameter.name, bits) : one_scheme;
    for (Override& each : overrides) {
      if (!matches(each.pattern, parameter.name)) continue;
      scheme = each.scheme;
      each.used = true;
    }
    const int64_t weights = parameter.shape().elements();
    if (const auto chosen = allocated.weights.find(parameter.name); chosen != allocated.weights.end())
      parameter.value = std::move(chosen->second);
    else
      parameter.value = backend->quantize(std::as_const(parameter).values().view(), scheme, parameter.name);
    done += weights;
    progress.update(done, total, parameter.name);
  }
  progress.finish();
  for (const Override& each : overrides)
    if (!each.used)
      fail<UsageError>(
          "--layer {}=…: no layer of this name; there are features.0, .3, .6, .8, .10 and classifier.1, .4, .6",
          each.pattern);
  save_state_dict(output, dict, compression_of(options));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  show_result(options, input, output, seconds, *backend, allocated.json);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Stores the weights of a float model as packed n-bit codes; biases stay float32.", "pack");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float model ({}); without it the newest one in weights/", model_files));
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
  options.allocation.add_to(app);
  app.add_option("--data", options.data, data_help)->type_name("PATH");
  add_strict_option(app, options.checksums);
  auto* compress = app.add_flag(
      "--compress,!--no-compress", options.compress,
      "Entropy-code the codes (rANS, no loss): a smaller file, decoded on loading, so that the resident size stays the "
      "same. On a packed MODEL, --compress or --no-compress alone rewrites it with the same codes; its default output "
      "is MODEL's name with _compressed or _uncompressed");
  options.device.add_to(app);
  add_json_option(app, options.json);
  return run_tool(app, argc, argv, [&] {
    catch_interrupts();
    options.rewrite = compress->count() > 0;
    pack(options, bits->count() > 0);
  });
}
