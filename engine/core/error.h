#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace nibblenet {

/// Root of every error this project throws. The message is one line for the user: what is wrong,
/// expected against actual, and what to do about it. Tools catch it once, in main.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Shapes that do not fit an operation, or a size nothing here supports.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// The content of a file is not what its format promises (truncated, corrupt, malicious).
class FormatError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused: missing file, full disk, no permission.
class IoError : public Error {
 public:
  using Error::Error;
};

/// An option or argument that makes no sense; the message lists what is supported.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// The GPU, its driver or its runtime refused; the message holds the call and the runtime's own words.
class CudaError : public Error {
 public:
  using Error::Error;
};

/// Throws `E` with a formatted message: `fail<ShapeError>("expected {}, got {}", a, b)`.
template <class E, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw E(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nibblenet
