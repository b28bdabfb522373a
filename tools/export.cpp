#include <fmt/core.h>

#include "tools/common/command_line.h"
#include "tools/common/model_search.h"
#include "tools/common/outputs.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

/// model.safetensors becomes model_float32.pth beside it.
std::filesystem::path default_output(const std::filesystem::path& model, const std::string& format) {
  return model.parent_path() / fmt::format("{}_float32.{}", model.stem().string(), format);
}

void export_model(const std::string& model, const std::string& format, const std::filesystem::path& output,
                  const std::string& json, Checksums checksums) {
  const auto claim = claim_output("-o", output, OutputKind::exported, {model});
  const StateDict dict = dequantized(load_model(model, checksums));
  if (format == "pth") {
    save_pth(output, dict);
    if (const auto size = dict.metadata.find(image_size_key); size != dict.metadata.end())
      fmt::print("a .pth has no place for the input size, {} pixels: name it as --image-size\n", size->second);
  } else {
    save_state_dict(output, dict);
  }
  fmt::print("wrote {} parameters in float32 to {}\n", dict.parameters.size(), output.string());
  std::error_code error;
  const bool regular = std::filesystem::is_regular_file(output, error);
  write_json(json, {{"input", model},
                    {"output", output.string()},
                    {"format", format},
                    {"bytes", regular ? nlohmann::json(std::filesystem::file_size(output)) : nlohmann::json()},
                    {"parameters", dict.parameters.size()}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes every parameter in float32 under its PyTorch name; packed weights are dequantized.", "export");
  std::string model, format, output, json;
  Checksums checksums = Checksums::warn;
  app.add_option("FILE", model, fmt::format("Float or packed model ({})", model_files))->required();
  app.add_option("--to", format, "Format: safetensors, or pth as torch.save writes it")
      ->check(CLI::IsMember({"safetensors", "pth"}))
      ->default_val("safetensors");
  app.add_option("-o,--output", output, "File to write; default: the name of FILE with _float32, beside FILE")
      ->type_name("FILE");
  add_strict_option(app, checksums);
  add_json_option(app, json);
  return run_tool(app, argc, argv, [&] {
    export_model(model, format, output.empty() ? default_output(model, format) : std::filesystem::path(output), json,
                 checksums);
  });
}
