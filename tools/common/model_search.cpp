#include "tools/common/model_search.h"

#include <fmt/core.h>

#include <optional>
#include <utility>

#include "engine/io/pth.h"
#include "engine/io/safetensors_header.h"
#include "engine/io/training_state.h"
#include "layers/network/canonical.h"
#include "tools/common/pretrained.h"

namespace nibblenet::tools {
namespace {

/// Whether a file has the ending of a model: ours, PyTorch's, or none, as the original notebooks
/// wrote them.
bool has_model_name(const std::filesystem::path& path) {
  const std::string ending = path.extension().string();
  return ending == ".safetensors" || ending == ".pth" || ending == ".pt" || ending.empty();
}

bool is_of_kind(const std::filesystem::path& path, ModelKind kind) {
  try {
    if (is_pth(path)) {
      const PthFile file(path);  // a broken file throws
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

/// --key, for every model that the process reads.
struct WeightsKey {
  std::string name;
  bool used = false;  ///< by a file that nibblenet did not write
  const CLI::App* app = nullptr;
};

WeightsKey& weights_key() {
  static WeightsKey key;
  return key;
}

bool is_foreign(const std::filesystem::path& path) {
  if (is_pth(path)) return true;
  const std::map<std::string, std::string> metadata = safetensors_metadata(path);
  const auto format = metadata.find("format");
  return format == metadata.end() || !format->second.starts_with("nibblenet");
}

[[noreturn]] void fail_for_key(const std::string& key, const std::filesystem::path& path, const StateDict& dict) {
  fail<UsageError>("--key {}: {} is of nibblenet's own format and holds one model{}; leave --key out", key,
                   path.string(),
                   dict.parameters.empty() ? "" : ", " + in_quotes(dict.parameters.front().name) + " and so on");
}

/// Throws UsageError for a --key that is neither for this file nor for one that is read after it.
void refuse_key(const std::filesystem::path& path, const StateDict& dict) {
  const WeightsKey& key = weights_key();
  if (key.name.empty() || key.used) return;
  for (const char* later : {"--compare", "--distill"})
    if (const CLI::Option* option = key.app->get_option_no_throw(later); option != nullptr && option->count() > 0)
      if (const auto file = option->as<std::string>(); std::filesystem::is_regular_file(file) && is_foreign(file))
        return;
  fail_for_key(key.name, path, dict);
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

StateDict read_model(const std::filesystem::path& path, Reading reading) {
  const bool foreign = is_foreign(path);
  const std::string key = std::exchange(reading.key, "");
  if (foreign) reading.key = key.empty() ? weights_key().name : key;
  StateDict dict = load_state_dict(path, reading);
  if (!foreign && !key.empty()) fail_for_key(key, path, dict);
  if (!foreign) refuse_key(path, dict);
  weights_key().used = weights_key().used || foreign;
  print_warnings(dict);
  for (const std::string& note : dict.notes) fmt::print("{}: {}\n", path.string(), printable(note));
  if (!dict.left_out.empty())
    fmt::print("{}: leaves out {} scalars that are no parameters: {}{}\n", path.string(), dict.left_out.size(),
               in_quotes(dict.left_out.front()), dict.left_out.size() > 1 ? " and so on" : "");
  return dict;
}

StateDict load_model(const std::filesystem::path& path, const Reading& reading) {
  StateDict dict = read_model(path, reading);
  prepare_model(dict, path.string());
  return dict;
}

void prepare_model(StateDict& dict, const std::string& title) {
  for (const std::string& change : make_canonical(dict, title)) fmt::print("{}\n", printable(change));
}

void check_model_file(const std::filesystem::path& path) {
  if (is_pth(path)) {
    PthFile{path};
  } else {
    safetensors_metadata(path);
  }
}

void print_warnings(const StateDict& dict) {
  for (const std::string& warning : dict.warnings) fmt::print(stderr, "warning: {}\n", printable(warning));
}

std::string key_for(const std::filesystem::path& path) { return is_foreign(path) ? weights_key().name : ""; }

void give_key(const std::string& name) {
  if (weights_key().name.empty()) weights_key().name = name;
}

void add_strict_option(CLI::App& app, Checksums& checksums) {
  app.add_flag_callback(
      "--strict", [&checksums] { checksums = Checksums::strict; },
      "Refuse a .pth whose checksums do not match, instead of warning");
  weights_key().app = &app;
  app.add_option("--key", weights_key().name,
                 "For a file of another program that holds several models, like plain and averaged weights: take those "
                 "under NAME")
      ->type_name("NAME");
}

void CommonOptions::add_to(CLI::App& app) {
  add_strict_option(app, checksums);
  device.add_to(app);
  add_json_option(app, json);
}

}  // namespace nibblenet::tools
