#pragma once

#include <cstdint>

namespace nibblenet {

/// How a process tells others of its machine that it is about to end, and has said why. The message
/// waits in the kernel until the other process looks, which may be after the end of the first. It
/// is a datagram to an abstract address (unix(7)), so that nothing is left behind.
class LastWords {
 public:
  /// Hears messages to this process from now on. Where the system refuses, none arrives.
  LastWords();
  ~LastWords();
  LastWords(const LastWords&) = delete;
  LastWords& operator=(const LastWords&) = delete;

  /// Tells a process. Does nothing where it cannot be reached.
  void tell(int64_t process) const;
  /// Whether a process has told this one.
  bool heard();

 private:
  int socket_ = -1;
  bool heard_ = false;
};

}  // namespace nibblenet
