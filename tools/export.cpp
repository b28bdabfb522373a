#include <fmt/core.h>

#include "engine/model/alexnet.h"
#include "tools/common/command_line.h"
#include "tools/common/model_search.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

void export_model(const std::string& model, const std::string& output) {
  const StateDict dict = dequantized(load_model(model));
  save_state_dict(output, dict);
  fmt::print("wrote {} parameters in float32 to {}\n", dict.parameters.size(), output);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes every parameter in float32 under its PyTorch name; packed weights are dequantized.", "export");
  std::string model, format, output;
  app.add_option("FILE", model, "Float or packed model (safetensors)")->required();
  app.add_option("--to", format, "Format: safetensors")
      ->check(CLI::IsMember({"safetensors"}))
      ->default_val("safetensors");
  app.add_option("-o,--output", output, "File to write")->required()->type_name("FILE");
  return run_tool(app, argc, argv, [&] { export_model(model, output); });
}
