#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace nibblenet {

/// Root of every error that this project throws. The message is one line for the user: what is
/// wrong, expected against actual, and what to do. Tools catch it once, in main.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A shape does not fit an operation, or a size is not supported.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A file's content violates its format: it is truncated, corrupt or malicious.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused a request: missing file, full disk, no permission.
class IoError : public Error {
 public:
  using Error::Error;
};

/// An option or argument is wrong. The message lists what is supported.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// The GPU, its driver or its runtime refused a call. The message has the call and the runtime's
/// error text.
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
