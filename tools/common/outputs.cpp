#include "tools/common/outputs.h"

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/io/safetensors.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

bool forced = false;

bool holds_logits(const fs::path& path) {
  try {
    const SafetensorsFile file(path);
    return file.tensors().size() == 2 && file.find("logits") != nullptr && file.find("labels") != nullptr;
  } catch (const Error&) {
    return false;
  }
}

/// Whether a file begins like gzip, bzip2, xz, JPEG, PNG or tar.
bool holds_images(const fs::path& path) {
  using namespace std::string_view_literals;
  std::array<char, 512> block = {};
  std::ifstream(path, std::ios::binary).read(block.data(), block.size());
  const std::string_view text(block.data(), block.size());
  for (const std::string_view start : {"\x1f\x8b"sv, "BZh"sv,
                                       "\xfd"
                                       "7zXZ"sv,
                                       "\xff\xd8\xff"sv, "\x89PNG"sv})
    if (text.starts_with(start)) return true;
  return text.substr(257).starts_with("ustar");
}

/// Why the file must not be replaced; empty when it may.
std::string objection(const fs::path& target, OutputKind kind, const std::vector<fs::path>& inputs) {
  std::error_code error;
  if (fs::is_symlink(target, error) && !fs::exists(target, error)) return "is a link to a file that does not exist";
  if (!fs::is_regular_file(target, error)) return {};
  for (const fs::path& input : inputs)
    if (!input.empty() && fs::equivalent(target, input, error)) return "is read, too";
  if (fs::file_size(target, error) == 0) return {};
  switch (kind) {
    case OutputKind::json: {
      std::ifstream file(target);
      return nlohmann::json::accept(file) ? "" : "exists and holds no JSON";
    }
    case OutputKind::logits:
      return holds_logits(target) ? "" : "exists and holds no logits";
    default:
      return holds_images(target) ? "exists and holds images or an archive" : "";
  }
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
  return FileClaim(target);
}

}  // namespace nibblenet::tools
