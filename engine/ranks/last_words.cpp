#include "engine/ranks/last_words.h"

#include <fmt/core.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <string>

namespace nibblenet {
namespace {

/// The address of a process.
struct Address {
  sockaddr_un name{};
  socklen_t size;

  explicit Address(int64_t process) {
    const std::string text = fmt::format("nibblenet-rank-{}", process);
    name.sun_family = AF_UNIX;
    std::ranges::copy(text, name.sun_path + 1);  // a zero in front makes it abstract
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  }
  const sockaddr* data() const { return reinterpret_cast<const sockaddr*>(&name); }
};

}  // namespace

LastWords::LastWords() : socket_(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
  const Address own(getpid());
  if (socket_ >= 0 && bind(socket_, own.data(), own.size) != 0) {
    close(socket_);
    socket_ = -1;
  }
}

LastWords::~LastWords() {
  if (socket_ >= 0) close(socket_);
}

void LastWords::tell(int64_t process) const {
  const Address other(process);
  const char word = 1;
  if (socket_ >= 0) static_cast<void>(sendto(socket_, &word, sizeof word, MSG_NOSIGNAL, other.data(), other.size));
}

bool LastWords::heard() {
  char word = 0;
  if (socket_ >= 0 && recv(socket_, &word, sizeof word, 0) > 0) heard_ = true;
  return heard_;
}

}  // namespace nibblenet
