#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "engine/io/posix_file.h"

namespace nibblenet {

/// Some bytes of a file, in memory of their own.
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

/// An ordinary file, open for reading. Its bytes are copied, not mapped: a mapping raises SIGBUS
/// when another process cuts the file short, and changes when it writes there.
class InputFile {
 public:
  /// Throws IoError when there is no ordinary file of that name to open.
  explicit InputFile(const std::filesystem::path& path);

  /// Size of the file in bytes, as it was when it was opened.
  uint64_t size() const { return size_; }
  /// The bytes [begin, begin + count), which lie within size(). Throws IoError when they are not
  /// there any more, or are more than this machine's memory.
  FileBytes read(uint64_t begin, uint64_t count) const;
  FileBytes read_all() const { return read(0, size_); }

 private:
  std::filesystem::path path_;
  FileDescriptor file_;
  uint64_t size_ = 0;
};

}  // namespace nibblenet
