#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/io/archive.h"
#include "engine/io/dataset.h"

namespace nibblenet {

/// Gathers the pictures of train/<class>/ and test/<class>/ during a walk, also those in folders
/// inside a class. train/ and test/ lie at the top or one folder down.
class ImageFolderReader {
 public:
  ImageFolderReader(std::filesystem::path path, Split split) : path_(std::move(path)), split_(split) {}
  /// Returns whether the file is a picture of either split. Keeps the split's pictures: from an
  /// archive their bytes, still compressed, from a folder their names. Throws FormatError.
  bool take(FileEntry& entry);
  /// Whether the walk met a picture of either split.
  bool found() const { return !classes_.empty(); }
  /// Decodes the pictures on several threads, and returns them in label order, then by file name.
  /// Call it once, at the end. Throws UsageError, or FormatError that names the first picture that
  /// cannot be read and counts them.
  Dataset finish(int64_t limit, Unreadable unreadable);

 private:
  struct Picture {
    std::string class_name;
    std::string folder;  ///< "class/a/b": pictures are sorted by this, then by the file's name
    std::string file_name;
    std::string location;
    std::filesystem::path on_disk;  // empty: `file` holds the bytes
    std::vector<uint8_t> file;
    std::string problem;  ///< why it cannot be read
    uint8_t label = 0;
  };
  std::vector<std::string> label_order() const;
  void order_and_limit(const std::vector<std::string>& classes, int64_t limit);
  std::vector<std::string> problems(const std::vector<std::string>& classes, Unreadable unreadable) const;

  std::filesystem::path path_;
  Split split_;
  std::optional<std::string> root_;  // the folder above train/ and test/, "" when there is none
  std::set<std::string> classes_;    // of both splits, so that they agree on the labels
  std::vector<Picture> pictures_;
  size_t file_bytes_ = 0;
};

}  // namespace nibblenet
