#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>

#include "engine/io/posix_file.h"

namespace nibblenet {

/// A file that is written as a whole or not at all. Bytes go to a temporary file beside `target`;
/// commit() renames it to `target`, else it is removed. After a kill or on a full disk there is the
/// old file or the new one, never half of one. Follows links. Writes pipes and character devices
/// directly. Errors are IoErrors with the reason of the operating system.
class AtomicFile {
 public:
  /// Opens a temporary file beside `target`, and removes those that killed runs left there. Throws
  /// IoError.
  explicit AtomicFile(const std::filesystem::path& target);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Appends bytes. Throws IoError, for a full disk too.
  void write(std::span<const uint8_t> bytes);
  /// Flushes the file to the disk, then renames it. Throws IoError.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;  ///< empty: `target_` is written directly, or is committed
  FileDescriptor file_;
};

/// A lock on the right to write `target` later: at most one FileClaim of all processes has it.
/// Taking it also proves that the folder can be written.
class FileClaim {
 public:
  /// Returns nothing when another claim exists. Throws IoError when the folder cannot be written.
  static std::optional<FileClaim> try_claim(const std::filesystem::path& target);
  FileClaim(FileClaim&&) = default;
  ~FileClaim();

 private:
  FileClaim(std::filesystem::path path, FileDescriptor file) : path_(std::move(path)), file_(std::move(file)) {}

  std::filesystem::path path_;  ///< an empty file that is locked
  FileDescriptor file_;
};

}  // namespace nibblenet
