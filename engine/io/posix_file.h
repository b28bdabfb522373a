#pragma once

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace nibblenet {

/// Owns an open file of the operating system. Move-only; closed when it goes out of scope.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int descriptor) : descriptor_(descriptor) {}
  FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() { close(); }

  int get() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }
  /// Closes the file. Returns false and sets errno when the system reports that data was lost.
  bool close();

 private:
  int descriptor_ = -1;
};

/// An open file of the C library, closed when it goes out of scope.
using StdioFile = std::unique_ptr<FILE, int (*)(FILE*)>;
/// Throws IoError "cannot open <path>: <reason>".
StdioFile open_stdio(const std::filesystem::path& path, const char* mode);

/// Throws IoError "cannot <action> <path>: <reason>; <advice>" for an errno value.
[[noreturn]] void fail_io(std::string_view action, const std::filesystem::path& path, int error = errno);

}  // namespace nibblenet
