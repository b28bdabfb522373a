#include <fmt/core.h>

#include "engine/quant/text.h"
#include "tools/common/command_line.h"
#include "tools/common/data_search.h"
#include "tools/common/model_search.h"
#include "tools/common/outputs.h"
#include "tools/common/progress.h"
#include "tools/common/report.h"
#include "tools/training/calibration_options.h"
#include "training/compression/channel_pruning.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;

struct Options : CommonOptions {
  std::vector<std::string> channels;
  CalibrationFlags calibration;
  std::string output;
};

/// "LAYER=512". Throws UsageError with the form.
std::pair<std::string, int64_t> parse_channels(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals != std::string::npos && equals > 0)
    if (const auto count = parse_number<int64_t>(text.substr(equals + 1)); count && *count > 0)
      return {text.substr(0, equals), *count};
  fail<UsageError>("--channels {}: expected LAYER=COUNT with a COUNT of 1 or more", text);
}

std::map<std::string, int64_t> parse_channels(const std::vector<std::string>& texts) {
  std::map<std::string, int64_t> counts;
  for (const std::string& text : texts)
    if (const auto [name, count] = parse_channels(text); !counts.emplace(name, count).second)
      fail<UsageError>("--channels names {} twice", name);
  return counts;
}

/// Says in the file what was removed, and what that was judged by.
void describe(std::map<std::string, std::string>& metadata, const std::vector<PrunedChannels>& pruned,
              const Calibration& calibration) {
  std::string layers;
  for (const PrunedChannels& layer : pruned)
    layers += fmt::format("{}{}: {} of {}", layers.empty() ? "" : ", ", layer.layer, layer.kept, layer.channels);
  std::string& channels = metadata["units"];
  channels = channels.empty() ? layers : fmt::format("{}; {}", channels, layers);
  metadata["units_calibration"] = fmt::format("{} images of {}", calibration.images, calibration.data);
}

void prune(const Options& options) {
  const std::map<std::string, int64_t> counts = parse_channels(options.channels);
  if (!options.calibration.calibrated())
    throw UsageError("prune measures which channels matter: give --calibrate DATA or --calibration FILE");
  const std::filesystem::path input = find_model(options.model, ModelKind::fine_tuned);
  const auto claim = claim_output("-o", options.output, OutputKind::exported, {input, options.calibration.load});
  StateDict model = load_model(input, options.checksums);
  if (model.packed())
    fail<UsageError>("{} is packed: prune the float model it came from, or tools/export it first", input.string());
  check_channels(model, counts);
  const int64_t weights_before = model.weight_count();

  const auto backend = options.device.make();
  nlohmann::json data;
  const Calibration calibration = options.calibration.obtain(input, model, *backend, &data).value();
  std::vector<PrunedChannels> pruned;
  {
    Progress progress("pruning", "channels");
    pruned = prune_channels(model, calibration, counts,
                            [&](int64_t removed, int64_t of) { progress.update_or_stop(removed, of); });
  }
  describe(model.metadata, pruned, calibration);
  save_state_dict(options.output, model);

  nlohmann::json layers = nlohmann::json::array();
  fmt::print("{:<14} {:>7} {:>7} {:>22}\n", "layer", "channels", "kept", "error behind it");
  for (const PrunedChannels& layer : pruned) {
    fmt::print("{:<14} {:>7} {:>7} {:>22.5f}\n", layer.layer, layer.channels, layer.kept, layer.error);
    layers.push_back(
        {{"layer", layer.layer}, {"channels", layer.channels}, {"kept", layer.kept}, {"error", layer.error}});
  }
  fmt::print("{} of {} weights remain in {}\n", model.weight_count(), weights_before, options.output);
  print_if_standin(data["stand_in"]);
  write_json(options.json, {{"input", input.string()},
                            {"output", options.output},
                            {"data_set", data},
                            {"weights_before", weights_before},
                            {"weights", model.weight_count()},
                            {"layers", layers}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Removes output channels (of a linear layer: neurons) of a float model without training: those that the next "
      "layer can best make up for with new weights. Writes a narrower float model, to pack, fine-tune or evaluate.",
      "prune");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float model ({}); without it the newest one in weights/", model_files));
  app.add_option("--channels", options.channels,
                 "How many channels or neurons of a layer remain; repeatable. The last layer's are the classes, which "
                 "all remain. Convolutions keep their fastest CUDA kernels at multiples of 64")
      ->required()
      ->allow_extra_args(false)  // one value each time: what follows may be MODEL
      ->type_name("LAYER=COUNT");
  app.add_option("-o,--output", options.output, "File to write")->required()->type_name("FILE");
  options.calibration.add_source_to(app);
  options.add_to(app);
  return run_long_tool(app, argc, argv, [&] { prune(options); });
}
