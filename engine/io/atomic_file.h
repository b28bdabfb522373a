#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>

#include "engine/io/posix_file.h"

namespace nibblenet {

/// A file under a temporary name in the folder of `target`, that becomes `target` on commit() and
/// vanishes otherwise: a killed run or a full disk leaves the old file or the new one, never half
/// of one. Links are followed. Pipes and character devices are written directly. What killed runs
/// left in that folder is removed. Throws IoError with the reason of the operating system.
class AtomicFile {
 public:
  /// Opens a temporary file beside `target`. Throws IoError.
  explicit AtomicFile(const std::filesystem::path& target);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Appends bytes. Throws IoError, for a full disk too.
  void write(std::span<const uint8_t> bytes);
  /// Flushed to the disk, then renamed.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;  ///< empty: `target_` is written directly, or is whole
  FileDescriptor file_;
};

/// The right to write `target` later, which one FileClaim of all processes has at a time. Taking it
/// shows that files can be made in that folder.
class FileClaim {
 public:
  /// Throws IoError where another process has the claim, or the folder cannot be written.
  explicit FileClaim(const std::filesystem::path& target);
  /// Nothing where another one has the claim. Throws IoError where the folder cannot be written.
  static std::optional<FileClaim> try_claim(const std::filesystem::path& target);
  FileClaim(FileClaim&&) = default;
  ~FileClaim();

 private:
  FileClaim(std::filesystem::path path, FileDescriptor file) : path_(std::move(path)), file_(std::move(file)) {}

  std::filesystem::path path_;  ///< of a file that holds nothing but a lock
  FileDescriptor file_;
};

}  // namespace nibblenet
