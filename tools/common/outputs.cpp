#include "tools/common/outputs.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <map>

#include "engine/io/json.h"
#include "engine/io/onnx_graph.h"
#include "engine/io/pth.h"
#include "engine/io/safetensors.h"
#include "engine/io/training_state.h"
#include "tools/common/model_card.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

bool forced = false;

/// What this process claimed, by canonical path: an option, or "the checkpoint of --out".
std::map<fs::path, std::string>& claimed() {
  static std::map<fs::path, std::string> names;
  return names;
}

/// What a file holds: "a model", "a checkpoint", "a calibration", "logits", "an ONNX model", "a
/// model card" or "something else".
std::string_view content_of(const fs::path& path) {
  try {
    const SafetensorsFile file(path);
    if (file.metadata().contains(training_position_key)) return "a checkpoint";
    if (const auto format = file.metadata().find("format"); format != file.metadata().end())
      if (format->second == "nibblenet-calibration") return "a calibration";
    return file.find("logits") != nullptr && file.find("labels") != nullptr ? "logits" : "a model";
  } catch (const Error&) {
    if (is_pth(path)) return "a model";
    return is_our_onnx(path) ? "an ONNX model" : is_model_card(path) ? "a model card" : "something else";
  }
}

/// What an output of this kind may replace.
std::string_view content_of(OutputKind kind) {
  switch (kind) {
    case OutputKind::onnx:
      return "an ONNX model";
    case OutputKind::card:
      return "a model card";
    case OutputKind::logits:
      return "logits";
    case OutputKind::calibration:
      return "a calibration";
    default:
      return "a model";
  }
}

/// Whether it is the setup of a sweep, its results or the plan of its shard, without which the
/// sweep cannot go on.
bool is_of_sweep(const fs::path& target) {
  constexpr std::array names = {"sweep.json", "results.jsonl", "shard.json"};
  std::error_code error;
  return std::ranges::find(names, target.filename()) != names.end() &&
         fs::is_regular_file(target.parent_path() / "sweep.json", error) &&
         fs::is_regular_file(target.parent_path() / "results.jsonl", error);
}

/// Why the file must not be replaced; empty when it may.
std::string objection(const fs::path& target, OutputKind kind, const std::vector<fs::path>& inputs) {
  std::error_code error;
  if (fs::is_symlink(target, error) && !fs::exists(target, error)) return "is a link to a file that does not exist";
  if (!fs::is_regular_file(target, error)) return {};
  for (const fs::path& input : inputs)
    if (!input.empty() && fs::equivalent(target, input, error)) return "is read, too";
  if (is_of_sweep(target)) return "belongs to a sweep";
  if (fs::file_size(target, error) == 0) return {};
  if (kind == OutputKind::json) {
    std::ifstream file(target);
    return nlohmann::json::accept(file) ? "" : "exists and holds no JSON";
  }
  const std::string_view content = content_of(target);
  return content == content_of(kind) ? "" : fmt::format("exists and holds {}", content);
}

}  // namespace

void add_force_option(CLI::App& app) {
  app.add_flag("--force", forced, "Overwrite even a file that is read, or that holds something else");
}

bool overwriting_forced() { return forced; }

std::optional<FileClaim> claim_output(const std::string& option, const fs::path& target, OutputKind kind,
                                      const std::vector<fs::path>& inputs) {
  if (target.empty()) return std::nullopt;
  std::error_code error;
  if (const std::string why = objection(target, kind, inputs); !why.empty() && !forced)
    fail<UsageError>("{} {} {}; choose another name, or add --force to replace it", option, target.string(), why);
  const fs::file_status status = fs::status(target, error);
  if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status)) {
    if (kind == OutputKind::model || !(fs::is_fifo(status) || fs::is_character_file(status)))
      fail<IoError>("cannot write {}: it is no ordinary file; choose another name", target.string());
    return std::nullopt;
  }
  return claim_file(option, target);
}

FileClaim claim_file(const std::string& what, const fs::path& target) {
  std::error_code error;
  const fs::path canonical = fs::weakly_canonical(fs::absolute(target), error);
  if (std::optional<FileClaim> claim = FileClaim::try_claim(target)) {
    claimed()[canonical] = what;
    return std::move(*claim);
  }
  if (const auto own = claimed().find(canonical); own != claimed().end() && own->second != what)
    fail<UsageError>("{} and {} are one file, {}; choose another name for one of them", own->second, what,
                     target.string());
  fail<IoError>("cannot write {}: another run is about to write it; wait for its end, or choose another name",
                target.string());
}

}  // namespace nibblenet::tools
