#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace nibblenet {

/// A file that walk_files() visits, in a folder or in an archive. Valid during the visit only.
class FileEntry {
 public:
  explicit FileEntry(std::vector<std::string> parts) : parts_(std::move(parts)) {}
  virtual ~FileEntry() = default;
  FileEntry(const FileEntry&) = delete;
  FileEntry& operator=(const FileEntry&) = delete;

  /// The path below the folder or archive: {"train", "cat", "0001.jpg"}. Never empty.
  const std::vector<std::string>& parts() const { return parts_; }
  /// The location for messages: "photos/train/cat/0001.jpg", "photos.tar.gz: train/cat/0001.jpg".
  virtual std::string location() const = 0;
  /// The path of a file in a folder, which can be read later; empty inside an archive.
  virtual std::filesystem::path on_disk() const { return {}; }
  /// Reads the whole content. Throws FormatError when it has, or claims to have, more than `most`
  /// bytes or the archive is broken, IoError when it cannot be read. Memory follows the bytes that
  /// arrive, not the claimed size.
  virtual std::vector<uint8_t> read(size_t most) = 0;

 protected:
  std::string name() const;  ///< parts with "/" between them

 private:
  std::vector<std::string> parts_;
};

/// Visits the files of a folder or archive, dangling links included. A folder is walked in no
/// particular order, up to `max_walk_depth` levels deep, along links of the first `max_link_depth`
/// levels. A .tar or .tar.gz is read in its own order in one
/// pass; nothing is extracted, and only what the visitor reads takes memory. Hidden files and
/// folders (".git", macOS's "._x") are skipped. Throws IoError when `path` cannot be read,
/// FormatError when it is neither, or a truncated or corrupt archive.
void walk_files(const std::filesystem::path& path, const std::function<void(FileEntry&)>& visit);

/// Deepest level of a file in a folder, and of a link that is followed. A data set needs fewer:
/// <archive>/<folder>/train/<class>/<folders>/<file>.
inline constexpr int max_walk_depth = 32, max_link_depth = 8;

/// Reads the whole content of a file on disk. Throws IoError, or FormatError when it has more than
/// `most` bytes.
std::vector<uint8_t> read_file(const std::filesystem::path& path, size_t most);

}  // namespace nibblenet
