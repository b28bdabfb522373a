#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/io/pth.h"
#include "engine/io/state_dict.h"
#include "engine/quant/bits.h"
#include "engine/quant/entropy.h"
#include "engine/quant/size.h"
#include "kernels/cuda/routes.h"
#include "layers/network/batch_norm.h"
#include "layers/network/foreign_names.h"
#include "layers/network/layer_routes.h"
#include "tools/common/command_line.h"
#include "tools/common/model_search.h"
#include "tools/common/report.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

/// Extremes of some values, NaN as soon as one of them is; and how many are no numbers.
struct ValueRange {
  float low = std::numeric_limits<float>::infinity();
  float high = -std::numeric_limits<float>::infinity();
  int64_t values = 0;
  int64_t nan = 0;
  int64_t infinite = 0;

  void add(const ValueRange& other) {
    const bool lost = std::isnan(low) || std::isnan(other.low);
    low = lost ? NAN : std::min(low, other.low);
    high = lost ? NAN : std::max(high, other.high);
    values += other.values;
    nan += other.nan;
    infinite += other.infinite;
  }
};

ValueRange range_of(const Parameter& parameter) {
  Tensor<float> decoded;
  TensorView<const float> values;
  if (parameter.packed()) {
    decoded = Tensor<float>(host_memory(), parameter.shape(), MemoryCategory::data);
    dequantize(parameter.packed_values(), decoded.view());
    values = std::as_const(decoded).view();
  } else {
    values = parameter.values().view();
  }
  ValueRange range;
  for (const float value : values)
    range.add({.low = value, .high = value, .values = 1, .nan = std::isnan(value), .infinite = std::isinf(value)});
  return range;
}

/// Null in JSON, which has no NaN and no infinity, where there is no such number.
void add_range(nlohmann::json& json, const ValueRange& range) {
  json["min"] = range.low;
  json["max"] = range.high;
  json["nan"] = range.nan;
  json["infinite"] = range.infinite;
}

/// How many weights have which decimal exponent: entry e counts codes whose value lies in
/// (10^-(e+1), 10^-e], the last entry the zeros. Empty for methods that are no dynamic tree.
std::vector<int64_t> exponents_of_codes(const PackedTensor& packed) {
  if (packed.scheme.method != Method::dynamic_tree && packed.scheme.method != Method::stable_embedding) return {};
  const Codebook codebook = codebook_of(packed);
  const auto exponents = static_cast<size_t>(packed.scheme.bits - 1);
  std::vector<size_t> exponent_of(256, exponents);
  for (int code = 0; code < 256; ++code) {
    const double magnitude = std::abs(static_cast<double>(codebook.values[static_cast<size_t>(code)]));
    if (magnitude > 0)
      exponent_of[static_cast<size_t>(code)] =
          std::min(exponents - 1, static_cast<size_t>(std::floor(-std::log10(magnitude) + 1e-9)));
  }
  std::vector<int64_t> counts(exponents + 1);
  for (int64_t channel = 0; channel < packed.shape[0]; ++channel) {
    const uint8_t* codes = packed.codes.data() + channel * packed.code_stride();
    for (int64_t k = 0; k < packed.shape.inner_elements(); ++k)
      ++counts[exponent_of[read_field(codes, k, packed.scheme.bits)]];
  }
  return counts;
}

double file_bits(int64_t bytes, int64_t values) {
  return values > 0 ? 8.0 * static_cast<double>(bytes) / static_cast<double>(values) : 0.0;
}

nlohmann::json describe(const Parameter& parameter, const ValueRange& range) {
  nlohmann::json json = {{"name", parameter.name},
                         {"shape", parameter.shape().sizes()},
                         {"scheme", parameter.stored_as},
                         {"bits_per_weight", file_bits(parameter.file_bytes, range.values)},
                         {"bytes", parameter.file_bytes}};
  add_range(json, range);
  if (!parameter.packed()) return json;
  const PackedTensor& packed = parameter.packed_values();
  SizeRow row{.weights = packed.shape.elements(), .groups = packed.groups(), .resident = resident_size(packed)};
  json["scheme"] = to_string(packed.scheme);
  json["groups"] = packed.groups();
  json["bits_per_weight"] = row.bits_per_weight();
  json["entropy"] = code_entropy(packed);
  json["compressed"] = parameter.compressed_bytes > 0;
  json["compressed_bytes"] = parameter.compressed_bytes;
  json["file_bits_per_weight"] = file_bits(parameter.file_bytes, row.weights);
  if (const auto counts = exponents_of_codes(packed); !counts.empty()) {
    json["exponent_counts"] = std::vector<int64_t>(counts.begin(), counts.end() - 1);
    json["zeros"] = counts.back();
  }
  return json;
}

void print(const nlohmann::json& tensor) {
  std::string shape;
  for (const auto& size : tensor["shape"]) shape += (shape.empty() ? "" : "x") + std::to_string(size.get<int64_t>());
  fmt::print("{:<20} {:<14} {:<28} {:>8.3f} {:>13} {:>12.5g} {:>12.5g}\n", printable(tensor["name"].get<std::string>()),
             shape, tensor["scheme"].get<std::string>(), tensor["bits_per_weight"].get<double>(),
             thousands(tensor["bytes"].get<int64_t>()), tensor["min"].get<double>(), tensor["max"].get<double>());
  if (const auto nan = tensor["nan"].get<int64_t>(), infinite = tensor["infinite"].get<int64_t>(); nan + infinite > 0)
    fmt::print("  no numbers: {} NaN, {} infinite\n", thousands(nan), thousands(infinite));
  if (tensor.value("compressed", false))
    fmt::print(
        "  codes compressed to {} bytes; {:.3f} bits a weight in the file, order-0 entropy of the codes {:.3f}\n",
        thousands(tensor["compressed_bytes"].get<int64_t>()), tensor["file_bits_per_weight"].get<double>(),
        tensor["entropy"].get<double>());
  if (!tensor.contains("exponent_counts")) return;
  fmt::print("  exponent counts:");
  int exponent = 0;
  for (const auto& count : tensor["exponent_counts"])
    fmt::print(" 1e-{}: {}", exponent++, thousands(count.get<int64_t>()));
  fmt::print(" zero: {}\n", thousands(tensor["zeros"].get<int64_t>()));
}

/// Options of --routes: a batch of inference on a GPU that need not be there.
struct RouteOptions {
  bool wanted = false;
  std::string gpu = "sm_90";
  int64_t batch = 1;
  int image_size = 0;  ///< 0: the file's
  std::string precision = "float16";
};

nlohmann::json print_routes(StateDict& dict, const RouteOptions& options) {
  fold_batch_norms(dict);
  const GpuTraits gpu = parse_gpu(options.gpu);
  const Precision precision = options.precision == "float32" ? Precision::float32 : Precision::float16;
  const int64_t size = image_size_of(dict, options.image_size);
  const auto route = [&](const LayerSpec& layer, const ForwardQuestion& question) {
    const Parameter& weight = dict.at(layer.name + ".weight");
    const WeightTraits traits = weight.packed() ? traits_of(weight.packed_values(), best_layout(weight.packed_values()))
                                                : traits_of(precision, best_layout(weight.shape()));
    return route_of(question, weight.shape(), traits, gpu);
  };
  const auto routes = layer_routes(layers_of(dict), {options.batch, size, size, 3}, precision, route);
  fmt::print("kernels on {}, {}, batch {}, images of {} x {}:\n{}", options.gpu, to_string(precision), options.batch,
             size, size, routes_table(routes));
  return to_json(routes);
}

void inspect(const std::string& model, bool verify, Checksums checksums, const RouteOptions& routes,
             const std::string& json_path) {
  nlohmann::json json;
  if (verify) {
    const int checked = is_pth(model) ? PthFile(model).verify() : SafetensorsFile(model).verify();
    fmt::print("{}: {} checksums verified{}\n", model, checked, checked == 0 ? " (the file has none)" : "");
    json["verified"] = checked;
  }
  StateDict dict = read_model(model, checksums);
  fmt::print("{}: {}, {} of it header\n", model, megabytes(static_cast<double>(dict.file_bytes)),
             thousands(dict.header_bytes));
  fmt::print("{:<20} {:<14} {:<28} {:>8} {:>13} {:>12} {:>12}\n", "tensor", "shape", "scheme", "bits/w", "bytes", "min",
             "max");
  ValueRange all;
  int64_t bytes = 0;
  for (const Parameter& parameter : dict.parameters) {
    const ValueRange range = range_of(parameter);
    all.add(range);
    bytes += parameter.file_bytes;
    const nlohmann::json tensor = describe(parameter, range);
    print(tensor);
    json["tensors"].push_back(tensor);
  }
  nlohmann::json total = {{"name", "total"},
                          {"shape", {all.values}},
                          {"scheme", ""},
                          {"bytes", bytes},
                          {"bits_per_weight", file_bits(bytes, all.values)}};
  add_range(total, all);
  print(total);
  json["total"] = total;
  if (routes.wanted) adopt_names(dict);
  if (routes.wanted) json["routes"] = print_routes(dict, routes);
  json["file"] = model;
  json["bytes"] = dict.file_bytes;
  json["header"] = dict.header_bytes;
  for (const auto& [key, value] : dict.metadata) json["metadata"][key] = value;
  write_json(json_path, json);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Shows what a float or packed model file holds: tensors, schemes, bits per weight, value ranges.",
               "inspect");
  std::string model, json;
  bool verify = false;
  app.add_option("FILE", model, fmt::format("Model ({})", model_files))->required();
  Checksums checksums = Checksums::warn;
  add_strict_option(app, checksums);
  app.add_flag("--verify", verify, "Recompute every checksum in the file; fails on the first that differs");
  RouteOptions routes;
  auto* wanted = app.add_flag("--routes", routes.wanted, "Print which CUDA kernel computes each layer; needs no GPU");
  add_checked(app, "--gpu", routes.gpu, CLI::IsMember({"sm_80", "sm_89", "sm_90"}),
              "Compute capability that --routes is about")
      ->needs(wanted);
  add_checked(app, "--batch", routes.batch, CLI::Range(1, 65536), "Images in a batch, for --routes")->needs(wanted);
  app.add_option("--image-size", routes.image_size, "Pixels of images, for --routes; by default what the file says")
      ->check(CLI::Range(1, 4096))
      ->needs(wanted);
  add_checked(app, "--precision", routes.precision, CLI::IsMember({"float32", "float16"}),
              "Of activations, for --routes: float16 or float32")
      ->needs(wanted);
  add_json_option(app, json);
  return run_tool(app, argc, argv, [&] { inspect(model, verify, checksums, routes, json); });
}
