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

/// Gathers the pictures of train/<class>/ and test/<class>/ from a walk, those of folders inside a
/// class too; train/ and test/ lie one folder further down at most.
class ImageFolderReader {
 public:
  ImageFolderReader(std::filesystem::path path, Split split) : path_(std::move(path)), split_(split) {}
  /// True when the file is a picture of either split. Inside an archive the split's are read, still
  /// compressed; in a folder only their names are kept. Throws FormatError for kinds of pictures
  /// that are not supported.
  bool take(FileEntry& entry);
  /// Whether any picture of either split came by.
  bool found() const { return !classes_.empty(); }
  /// Decodes the pictures, on several threads, in label order, then by file name. Call once, at the
  /// end. Throws UsageError, or FormatError that names the first broken picture and counts them.
  Dataset finish(int64_t limit);

 private:
  struct Picture {
    std::string class_name;
    std::string folder;  ///< "class/a/b": pictures are in the order of this, then of the file's name
    std::string file_name;
    std::string location;
    std::filesystem::path on_disk;  // empty: `file` holds the bytes
    std::vector<uint8_t> file;
    uint8_t label = 0;
  };
  std::vector<std::string> label_order() const;
  void order_and_limit(const std::vector<std::string>& classes, int64_t limit);

  std::filesystem::path path_;
  Split split_;
  std::optional<std::string> root_;  // the folder above train/ and test/, "" when there is none
  std::set<std::string> classes_;    // of both splits, so that they agree on the labels
  std::vector<Picture> pictures_;
  size_t file_bytes_ = 0;
};

}  // namespace nibblenet
