#include "tools/common/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>

namespace nibblenet::tools {
namespace {

struct Stream {
  int descriptor;
  std::atomic<int> error = 0;  ///< errno of the first write that failed
};
Stream output{STDOUT_FILENO}, errors{STDERR_FILENO};

/// 0, or errno.
int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(descriptor, text.data(), text.size());
    if (written < 0 && errno != EINTR) return errno;
    if (written > 0) text.remove_prefix(static_cast<size_t>(written));
  }
  return 0;
}

/// The function that stdio calls to write. It always reports success.
ssize_t write_and_remember(void* cookie, const char* text, size_t size) {
  auto& stream = *static_cast<Stream*>(cookie);
  if (stream.descriptor == STDERR_FILENO) std::fflush(stdout);
  int none = 0;
  if (const int error = write_all(stream.descriptor, {text, size}); error != 0)
    stream.error.compare_exchange_strong(none, error);
  return static_cast<ssize_t>(size);
}

FILE* guarded(Stream& stream, FILE* original, int buffering) {
  FILE* file =
      fopencookie(&stream, "w", {.read = nullptr, .write = write_and_remember, .seek = nullptr, .close = nullptr});
  if (file == nullptr) return original;
  setvbuf(file, nullptr, buffering, BUFSIZ);
  return file;
}

}  // namespace

void guard_standard_streams() {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // The next file that is opened, a model for instance, would get the number of a closed
  // descriptor, and messages would go into it. /dev/null, opened for reading, takes the number
  // instead.
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(descriptor, F_GETFD) < 0) open("/dev/null", O_RDONLY);  // takes the lowest free number
  stdout = guarded(output, stdout, isatty(STDOUT_FILENO) != 0 ? _IOLBF : _IOFBF);
  stderr = guarded(errors, stderr, _IONBF);
}

int standard_output_error() { return output.error; }

int standard_error_error() { return errors.error; }

void write_progress(std::string_view text) {
  std::fflush(stdout);
  write_all(STDERR_FILENO, text);
}

}  // namespace nibblenet::tools
