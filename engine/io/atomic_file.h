#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "engine/io/posix_file.h"

namespace nibblenet {

/// A file under a temporary name in the folder of `target`, that becomes `target` on commit() and
/// vanishes otherwise: a killed run or a full disk leaves the old file or the new one, never half
/// of one. Links are followed, and only an ordinary file or nothing may be there. Throws IoError
/// with the reason of the operating system.
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
  std::filesystem::path folder() const { return target_.has_parent_path() ? target_.parent_path() : "."; }

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  FileDescriptor file_;
  bool committed_ = false;
};

}  // namespace nibblenet
