#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace nibblenet {

/// A file that walk_files came across, in a folder or in an archive. Valid during the visit only.
class FileEntry {
 public:
  explicit FileEntry(std::vector<std::string> parts) : parts_(std::move(parts)) {}
  virtual ~FileEntry() = default;
  FileEntry(const FileEntry&) = delete;
  FileEntry& operator=(const FileEntry&) = delete;

  /// The path below the folder or archive: {"train", "cat", "0001.jpg"}. Never empty.
  const std::vector<std::string>& parts() const { return parts_; }
  /// Where it lies, for messages: "photos/train/cat/0001.jpg", "photos.tar.gz: train/cat/0001.jpg".
  virtual std::string location() const = 0;
  /// The file itself when it lies in a folder, so that it can be read later; empty inside an
  /// archive.
  virtual std::filesystem::path on_disk() const { return {}; }
  /// The whole content. Throws FormatError when it has more than `most` bytes or the archive is
  /// broken, IoError when it cannot be read. What a header says about the size is believed only
  /// when it is too much.
  virtual std::vector<uint8_t> read(size_t most) = 0;

 protected:
  std::string name() const;  ///< parts with "/" between them

 private:
  std::vector<std::string> parts_;
};

/// Visits the files of a folder (up to `max_walk_depth` levels deep, links followed, in no
/// particular order) or of a .tar or .tar.gz (in its own order, one pass, nothing extracted, memory
/// bounded by what the visitor reads). Hidden files and folders (".git", macOS's "._x") are passed
/// over. Throws IoError when `path` cannot be read, FormatError when it is no such archive, or a
/// truncated or corrupt one.
void walk_files(const std::filesystem::path& path, const std::function<void(FileEntry&)>& visit);

/// <archive>/<folder>/train/<class>/<folders>/<file>: some folders more than a data set has.
inline constexpr int max_walk_depth = 8;

/// The whole content of a file on disk. Throws IoError, or FormatError when it has more than `most`
/// bytes.
std::vector<uint8_t> read_file(const std::filesystem::path& path, size_t most);

}  // namespace nibblenet
