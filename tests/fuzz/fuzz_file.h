#pragma once

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

/// What fuzz entries share.
namespace nibblenet::fuzz {

/// Stops the fuzzer: the input that was being tried breaks a promise of the reader.
inline void require(bool promise) {
  if (!promise) std::abort();
}

/// The bytes as a file, in memory. Valid until the next call.
inline const std::string& as_file(std::span<const uint8_t> bytes) {
  static const int descriptor = memfd_create("fuzz", 0);
  static const std::string path = fmt::format("/proc/self/fd/{}", descriptor);
  require(descriptor >= 0 && ftruncate(descriptor, 0) == 0 &&
          pwrite(descriptor, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  return path;
}

}  // namespace nibblenet::fuzz
