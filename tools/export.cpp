#include <fmt/core.h>

#include "engine/io/onnx_graph.h"
#include "layers/network/onnx.h"
#include "layers/network/precision_choice.h"
#include "tools/common/command_line.h"
#include "tools/common/model_search.h"
#include "tools/common/outputs.h"
#include "tools/common/report.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options {
  std::string model;
  std::string format;
  std::filesystem::path output;
  int image_size = 0;
  std::string json;
  Checksums checksums = Checksums::warn;
};

/// model.safetensors becomes model_float32.pth or model.onnx beside it.
std::filesystem::path default_output(const std::filesystem::path& model, const std::string& format) {
  const std::string name = model.stem().string();
  return model.parent_path() / (format == "onnx" ? name + ".onnx" : fmt::format("{}_float32.{}", name, format));
}

/// The size of a written file; null where it is a pipe or a device.
nlohmann::json bytes_of_file(const std::filesystem::path& path) {
  std::error_code error;
  const bool regular = std::filesystem::is_regular_file(path, error);
  return regular ? nlohmann::json(std::filesystem::file_size(path)) : nlohmann::json();
}

/// Prints the bytes of each layer in the ONNX file beside the ledger, and returns them as JSON.
nlohmann::json show_onnx(const std::vector<OnnxLayer>& layers, const nlohmann::json& file) {
  constexpr const char* line = "{:<14} {:<{}} {:<16} {:>11} {:>13} {:>13} {:>11}\n";
  const size_t width = longest(layers, 24, &OnnxLayer::scheme);
  fmt::print(line, "layer", "scheme", width, "in ONNX", "weights", "resident B", "ONNX B", "difference");
  nlohmann::json json = nlohmann::json::array();
  OnnxLayer total;
  for (const OnnxLayer& layer : layers) {
    fmt::print(line, layer.name, layer.scheme, width, layer.stored_as, thousands(layer.weights),
               thousands(layer.resident), thousands(layer.onnx),
               difference(static_cast<double>(layer.onnx), static_cast<double>(layer.resident)));
    json.push_back({{"name", layer.name},
                    {"scheme", layer.scheme},
                    {"stored_as", layer.stored_as},
                    {"weights", layer.weights},
                    {"resident", layer.resident},
                    {"onnx", layer.onnx}});
    total.weights += layer.weights;
    total.resident += layer.resident;
    total.onnx += layer.onnx;
  }
  const int64_t bytes = file.is_null() ? total.onnx : file.get<int64_t>();
  fmt::print(line, "graph", "", width, "", "", "", thousands(bytes - total.onnx), "");
  fmt::print(line, "total", "", width, "", thousands(total.weights), thousands(total.resident), thousands(bytes),
             difference(static_cast<double>(bytes), static_cast<double>(total.resident)));
  return {{"resident", total.resident}, {"onnx", bytes}, {"layers", json}};
}

void export_onnx(const Options& options) {
  const auto claim = claim_output("-o", options.output, OutputKind::onnx, {options.model});
  const StateDict dict = load_model(options.model, options.checksums);
  const int image_size = image_size_of(dict, options.image_size);
  const std::vector<OnnxLayer> layers = save_onnx(options.output, dict, image_size);
  const nlohmann::json bytes = bytes_of_file(options.output);
  const nlohmann::json size = show_onnx(layers, bytes);
  fmt::print("wrote {} for images of {} pixels, opset {}\n", options.output.string(), image_size, onnx_opset);
  write_json(options.json, {{"input", options.model},
                            {"output", options.output.string()},
                            {"format", options.format},
                            {"bytes", bytes},
                            {"parameters", dict.parameters.size()},
                            {"opset", onnx_opset},
                            {"image_size", image_size},
                            {"size", size}});
}

void export_model(const Options& options) {
  const auto claim = claim_output("-o", options.output, OutputKind::exported, {options.model});
  StateDict dict = dequantized(load_model(options.model, options.checksums));
  forget_precisions(dict.metadata);
  if (options.format == "pth") {
    save_pth(options.output, dict);
    if (const auto size = dict.metadata.find(image_size_key); size != dict.metadata.end())
      fmt::print("a .pth has no place for the input size, {} pixels: name it as --image-size\n", size->second);
  } else {
    save_state_dict(options.output, dict);
  }
  fmt::print("wrote {} parameters in float32 to {}\n", dict.parameters.size(), options.output.string());
  write_json(options.json, {{"input", options.model},
                            {"output", options.output.string()},
                            {"format", options.format},
                            {"bytes", bytes_of_file(options.output)},
                            {"parameters", dict.parameters.size()}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Writes every parameter under its PyTorch name: in float32, packed weights dequantized, or as ONNX with the "
      "weights packed.",
      "export");
  Options options;
  app.add_option("FILE", options.model, fmt::format("Float or packed model ({})", model_files))->required();
  app.add_option("--to", options.format,
                 "Format: safetensors, pth as torch.save writes it, or onnx: the whole network, weights still packed")
      ->check(CLI::IsMember({"safetensors", "pth", "onnx"}))
      ->default_val("safetensors");
  app.add_option("-o,--output", options.output,
                 "File to write; default: the name of FILE with _float32, or with .onnx, beside FILE")
      ->type_name("FILE");
  app.add_option("--image-size", options.image_size,
                 "Input pixels of an ONNX network; default: what the model was trained with, else 224")
      ->check(CLI::Range(1, 4096));
  add_strict_option(app, options.checksums);
  add_json_option(app, options.json);
  return run_tool(app, argc, argv, [&] {
    const bool onnx = options.format == "onnx";
    if (options.image_size != 0 && !onnx) throw UsageError("--image-size is for --to onnx: leave it out");
    if (options.output.empty()) options.output = default_output(options.model, options.format);
    if (onnx)
      export_onnx(options);
    else
      export_model(options);
  });
}
