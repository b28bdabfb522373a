#include "tools/common/pretrained.h"

#include <fmt/core.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include "engine/io/download.h"
#include "engine/io/json.h"
#include "tools/common/command_line.h"
#include "tools/common/progress.h"

namespace nibblenet::tools {
namespace {

namespace fs = std::filesystem;

fs::path weights_folder() { return project_root() / "weights"; }

/// The entries of weights/manifest.json; none when there is no such file.
std::vector<PublishedModel> manifest() {
  const fs::path path = weights_folder() / "manifest.json";
  std::ifstream file(path);
  std::vector<PublishedModel> models;
  if (!file) return models;
  try {
    for (const nlohmann::json& entry : nlohmann::json::parse(file))
      models.push_back({entry.at("name"), entry.at("url"), entry.at("bytes"), entry.at("sha256_prefix")});
  } catch (const nlohmann::json::exception& error) {
    fail<FormatError>("{}: {}; it should be a list of name, url, bytes, sha256_prefix", path.string(), error.what());
  }
  return models;
}

fs::path file_of(const PublishedModel& model) {
  return weights_folder() / model.url.substr(model.url.find_last_of('/') + 1);
}

/// "7be5be79" of "alexnet-owt-7be5be79.pth"; empty when the name has no such digits.
std::string hash_in_name(const fs::path& file) {
  constexpr size_t digits = 8;
  const std::string ending = file.extension().string();
  const std::string stem = file.stem().string();
  if ((ending != ".pth" && ending != ".pt") || stem.size() <= digits || stem[stem.size() - digits - 1] != '-')
    return "";
  const std::string hash = stem.substr(stem.size() - digits);
  return hash.find_first_not_of("0123456789abcdef") == std::string::npos ? hash : "";
}

}  // namespace

std::optional<PublishedModel> find_published(std::string_view name) {
  for (PublishedModel& model : manifest())
    if (model.name == name) return std::move(model);
  return std::nullopt;
}

bool is_published(const fs::path& file) {
  return std::ranges::any_of(manifest(),
                             [&](const auto& model) { return file_of(model).filename() == file.filename(); });
}

fs::path obtain(const PublishedModel& model) {
  const fs::path file = file_of(model);
  try {
    Progress progress("downloading " + file.filename().string(), "bytes");
    download(model.url, file, {Digest::sha256, model.sha256_prefix}, model.bytes,
             [&](int64_t received, int64_t expected) {
               progress.update(received, expected);
               if (interrupted()) throw Stopped("stopped; run again to go on with the download");
             });
  } catch (const Stopped&) {
    throw;
  } catch (const Error& error) {
    fail<IoError>("{}; without a network, fetch {} elsewhere ({} bytes) and put it into {}", error.what(), model.url,
                  model.bytes, weights_folder().string());
  }
  fmt::print("{}: {} (SHA-256 begins with {})\n", model.name, file.string(), model.sha256_prefix);
  return file;
}

void check_hash_in_name(const fs::path& file) {
  const std::string expected = hash_in_name(file);
  std::error_code error;
  if (expected.empty() || !fs::is_regular_file(file, error)) return;
  if (const std::string actual = digest_of_file(file, Digest::sha256); !actual.starts_with(expected))
    fail<FormatError>(
        "{}: its SHA-256 begins with {}, its name says {}; it is damaged or another file: fetch it again, "
        "or rename it if these digits are no hash",
        file.string(), actual.substr(0, expected.size()), expected);
}

}  // namespace nibblenet::tools
