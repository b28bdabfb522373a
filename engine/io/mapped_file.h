#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace nibblenet {

/// A whole file as read-only memory, for readers that use its bytes in place. Should another
/// process shorten the file afterwards, touching the lost pages raises SIGBUS: the price of not
/// copying. Files of this project are replaced by rename, which leaves mappings whole. Throws
/// IoError when there is no ordinary file of that name to open.
class MappedFile {
 public:
  /// Maps the whole file for reading. Throws IoError.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return {static_cast<const uint8_t*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nibblenet
