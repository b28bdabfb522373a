#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/archive.h"
#include "engine/io/dataset.h"

namespace nibblenet {

/// CIFAR-10's binary format: records of a label and three planes of 32 x 32 bytes, red, green,
/// blue.
inline constexpr int cifar_side = 32;
inline constexpr size_t cifar_plane_bytes = size_t{cifar_side} * cifar_side;
inline constexpr size_t cifar_record_bytes = 1 + 3 * cifar_plane_bytes;
inline constexpr int cifar_train_files = 5;

/// The binary version (data_batch_1.bin, batches.meta.txt) or the Python one (data_batch_1,
/// batches.meta: pickles).
enum class CifarVersion : uint8_t { binary, python };

/// Gathers the files of one version of a CIFAR-10 data set during a walk, in any order.
class Cifar10Reader {
 public:
  Cifar10Reader(std::filesystem::path path, Split split, CifarVersion version)
      : path_(std::move(path)), split_(split), version_(version) {}
  /// Returns whether the file belongs to the format. Reads it when it belongs to the split. Throws
  /// FormatError.
  bool take(FileEntry& entry);
  /// Whether the walk met a batch of either split.
  bool found() const { return found_; }
  /// Returns the data set in the order of its files and records. Call it once, at the end. Throws
  /// FormatError or UsageError.
  Dataset finish(int64_t limit);

 private:
  struct File {
    std::string location;
    std::vector<uint8_t> content;
  };
  /// The batch's number for a split, 0 when the name is another's.
  int batch_number(std::string_view name, Split split) const;
  std::vector<std::string> class_names() const;
  void append(Dataset& dataset, const File& file, std::vector<int64_t>& room) const;

  std::filesystem::path path_;
  Split split_;
  CifarVersion version_;
  bool found_ = false;
  std::map<int, File> files_;  // by number, 1 … 5; the test batch is 1
  std::optional<File> names_;  // batches.meta
};

}  // namespace nibblenet
