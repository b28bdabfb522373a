#include "tools/common/model_search.h"

#include <fmt/core.h>

#include <optional>

#include "engine/io/pth.h"
#include "engine/io/training_state.h"
#include "layers/network/batch_norm.h"
#include "layers/network/network_spec.h"
#include "tools/common/command_line.h"
#include "tools/common/pretrained.h"

namespace nibblenet::tools {
namespace {

/// Names that models go by: ours, PyTorch's, and those of the original notebooks, which have no
/// ending.
bool has_model_name(const std::filesystem::path& path) {
  const std::string ending = path.extension().string();
  return ending == ".safetensors" || ending == ".pth" || ending == ".pt" || ending.empty();
}

bool is_of_kind(const std::filesystem::path& path, ModelKind kind) {
  try {
    if (is_pth(path)) {
      const PthFile file(path);  // broken ones throw
      return kind == ModelKind::fine_tuned && !is_published(path);
    }
    const auto metadata = safetensors_metadata(path);
    const auto format = metadata.find("format");
    const bool packed = format != metadata.end() && format->second == "nibblenet-packed";
    const bool checkpoint = metadata.contains(training_position_key);
    return kind == ModelKind::packed ? packed : !packed && !checkpoint;
  } catch (const Error&) {
    return false;  // a broken file in weights/ is not the newest model
  }
}

}  // namespace

std::filesystem::path find_model(const std::string& given, ModelKind kind) {
  if (!given.empty()) return given;
  const std::filesystem::path folder = project_root() / "weights";
  std::optional<std::filesystem::directory_entry> newest;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (!has_model_name(entry.path()) || !entry.is_regular_file(error)) continue;
    if (newest && entry.last_write_time(error) <= newest->last_write_time(error)) continue;
    if (is_of_kind(entry.path(), kind)) newest = entry;
  }
  const bool packed = kind == ModelKind::packed;
  if (!newest)
    fail<UsageError>("no {} model in {}: {}, or name a MODEL", packed ? "packed" : "fine-tuned", folder.string(),
                     packed ? "run tools/pack first" : "run tools/finetune first");
  fmt::print("model: {} (the newest {} one in weights/)\n", newest->path().string(), packed ? "packed" : "fine-tuned");
  return newest->path();
}

StateDict load_model(const std::filesystem::path& path, Checksums checksums) {
  StateDict dict = load_state_dict(path, checksums);
  print_warnings(dict);
  if (drop_training_state(dict)) fmt::print("{} is a checkpoint: taking the parameters it holds\n", path.string());
  try {
    if (const int folded = fold_batch_norms(dict); folded > 0)
      fmt::print("{}: folded {} batch norms into the convolutions in front of them\n", path.string(), folded);
    layers_of(dict);
  } catch (const Error& error) {
    fail<FormatError>("{}: {}", path.string(), error.what());
  }
  return dict;
}

void check_model_file(const std::filesystem::path& path) {
  if (is_pth(path)) {
    PthFile{path};
  } else {
    safetensors_metadata(path);
  }
}

void print_warnings(const StateDict& dict) {
  for (const std::string& warning : dict.warnings) fmt::print(stderr, "warning: {}\n", warning);
}

void add_strict_option(CLI::App& app, Checksums& checksums) {
  app.add_flag_callback(
      "--strict", [&checksums] { checksums = Checksums::strict; },
      "Refuse a .pth whose checksums do not fit, instead of a warning");
}

}  // namespace nibblenet::tools
