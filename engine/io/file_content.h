#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "engine/io/posix_file.h"

namespace nibblenet {

/// A copy of some bytes of a file.
class FileBytes {
 public:
  FileBytes() = default;
  /// Requires: `size` bytes in `data`.
  FileBytes(std::unique_ptr<uint8_t[]> data, size_t size) : data_(std::move(data)), size_(size) {}

  std::span<const uint8_t> bytes() const { return {data_.get(), size_}; }

 private:
  std::unique_ptr<uint8_t[]> data_;
  size_t size_ = 0;
};

/// A regular file, open for reading. Its bytes are copied, not mapped: a mapping raises SIGBUS when
/// another process truncates the file, and changes when one writes to it.
class InputFile {
 public:
  /// Throws IoError when `path` is no regular file, or cannot be opened.
  explicit InputFile(const std::filesystem::path& path);

  /// Size of the file in bytes when it was opened.
  uint64_t size() const { return size_; }
  /// Reads the bytes [begin, begin + count), which lie within size(). Throws IoError when the file
  /// has become shorter, or when they are more than this machine's memory.
  FileBytes read(uint64_t begin, uint64_t count) const;
  FileBytes read_all() const { return read(0, size_); }

 private:
  std::filesystem::path path_;
  FileDescriptor file_;
  uint64_t size_ = 0;
};

}  // namespace nibblenet
