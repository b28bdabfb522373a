#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace nibblenet::tools {

/// A published model: an entry of weights/manifest.json.
struct PublishedModel {
  std::string name;           ///< what --init calls it
  std::string url;            ///< the file in weights/ is named like its last part
  int64_t bytes = 0;          ///< of the file
  std::string sha256_prefix;  ///< first hexadecimal digits of the file's SHA-256
};

/// The published model of this name, if there is one. Throws FormatError for a broken manifest.
std::optional<PublishedModel> find_published(std::string_view name);

/// Whether a file has the name of a published model.
bool is_published(const std::filesystem::path& file);

/// Path in weights/ of a published model, downloaded unless it is there. Checks length and hash.
/// Throws IoError that says how to put the file there by hand. Throws Stopped on Ctrl-C; the next
/// call continues the download.
std::filesystem::path obtain(const PublishedModel& model);

/// Checks the hash in a file's name: PyTorch publishes <name>-<first 8 digits of the SHA-256>.pth.
/// Throws FormatError when the file's SHA-256 begins with other digits.
void check_hash_in_name(const std::filesystem::path& file);

}  // namespace nibblenet::tools
