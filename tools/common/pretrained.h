#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace nibblenet::tools {

/// A model that somebody publishes, as weights/manifest.json lists it.
struct PublishedModel {
  std::string name;           ///< what --init calls it
  std::string url;            ///< its last part is the file's name in weights/
  int64_t bytes = 0;          ///< of the file
  std::string sha256_prefix;  ///< first hexadecimal digits of the file's SHA-256
};

/// The published model of that name; nothing when there is none. Throws FormatError for a broken
/// manifest.
std::optional<PublishedModel> find_published(std::string_view name);

/// Whether a file has the name of a published model.
bool is_published(const std::filesystem::path& file);

/// The file of a published model in weights/, downloaded unless it is there, its length and hash
/// checked. Throws IoError or FormatError that says how to put it there by hand, and Stopped on
/// Ctrl-C, after which the download goes on.
std::filesystem::path obtain(const PublishedModel& model);

/// PyTorch names what it publishes <name>-<first 8 digits of the SHA-256>.pth: a file of such a
/// name has to have that hash. Throws FormatError when it has another.
void check_hash_in_name(const std::filesystem::path& file);

}  // namespace nibblenet::tools
