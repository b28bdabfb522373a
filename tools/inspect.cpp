#include <fmt/core.h>

#include "engine/io/pth.h"
#include "engine/io/state_dict.h"
#include "engine/quant/hadamard.h"
#include "kernels/cuda/routes.h"
#include "layers/network/batch_norm.h"
#include "layers/network/foreign_names.h"
#include "layers/network/layer_routes.h"
#include "tools/common/command_line.h"
#include "tools/common/inspection.h"
#include "tools/common/model_search.h"
#include "tools/common/report.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

void print(const nlohmann::json& tensor, size_t width) {
  std::string shape;
  for (const auto& size : tensor["shape"]) shape += (shape.empty() ? "" : "x") + std::to_string(size.get<int64_t>());
  fmt::print("{:<20} {:<14} {:<{}} {:>8.3f} {:>13} {:>12.5g} {:>12.5g}\n", printable(tensor["name"].get<std::string>()),
             shape, tensor["scheme"].get<std::string>(), width, tensor["bits_per_weight"].get<double>(),
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
    std::optional<ForwardRoute> answer = route_of(question, weight.shape(), traits, gpu);
    if (answer && weight.packed())
      answer->rotates = bool(rotation_of_inputs(weight.packed_values().scheme, weight.shape()));
    return answer;
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
  json.update(inspection_json(dict));
  const size_t width = longest(json["tensors"], 28, [](const nlohmann::json& tensor) {
    return std::string_view(tensor["scheme"].get_ref<const std::string&>());
  });
  fmt::print("{:<20} {:<14} {:<{}} {:>8} {:>13} {:>12} {:>12}\n", "tensor", "shape", "scheme", width, "bits/w", "bytes",
             "min", "max");
  for (const nlohmann::json& tensor : json["tensors"]) print(tensor, width);
  print(json["total"], width);
  if (routes.wanted) adopt_names(dict);
  if (routes.wanted) json["routes"] = print_routes(dict, routes);
  json["file"] = model;
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
