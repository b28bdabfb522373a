// Stands in for NCCL between processes of one machine, over sockets: it moves the numbers of the
// calls that ranks make, late and bit by bit, and refuses what NCCL's documentation forbids. It is
// no part of NCCL and is written after that documentation. FAKE_NCCL_FAILS=N: the communicator
// breaks behind its N-th group.

#include <nccl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/hostexec/fake_stream.h"

struct ncclComm : std::enable_shared_from_this<ncclComm> {
  /// The side of a connection to another rank.
  struct Peer {
    int socket = -1;
    bool introduced = false;  ///< has told, or was told, which rank it is
  };
  int rank = 0;
  int ranks = 1;
  std::string name;  ///< of the addresses
  int listener = -1;
  std::vector<Peer> peers;
  std::vector<int> strangers;  ///< accepted, and not introduced yet
  ncclResult_t state = ncclInProgress;
  int polls = 3;  ///< until a group counts as launched
  int groups = 0;
  bool aborted = false;

  bool connected() const {
    for (int other = 0; other < ranks; ++other)
      if (other != rank && !peers[static_cast<size_t>(other)].introduced) return false;
    return true;
  }
  void close_all() {
    for (const Peer& peer : peers)
      if (peer.socket >= 0) close(peer.socket);
    for (const int stranger : strangers) close(stranger);
    if (listener >= 0) close(listener);
  }
};

namespace {

struct Address {
  sockaddr_un name{};
  socklen_t size;
  explicit Address(const std::string& text) {
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path + 1, text.data(), text.size());
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  }
  const sockaddr* data() const { return reinterpret_cast<const sockaddr*>(&name); }
};

std::string address_of(const ncclComm& comm, int rank) { return comm.name + "-" + std::to_string(rank); }

/// A rank calls those before it, and is called by those behind it.
void connect_more(ncclComm& comm) {
  for (int other = 0; other < comm.rank; ++other) {
    ncclComm::Peer& peer = comm.peers[static_cast<size_t>(other)];
    if (peer.introduced) continue;
    const Address address(address_of(comm, other));
    const int own = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(own, address.data(), address.size) != 0) {
      close(own);
      continue;
    }
    peer = {own, send(own, &comm.rank, sizeof comm.rank, MSG_NOSIGNAL) == sizeof comm.rank};
  }
  for (int caller; (caller = accept4(comm.listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0;)
    comm.strangers.push_back(caller);
  for (int& stranger : comm.strangers) {
    int rank = 0;
    if (stranger < 0 || recv(stranger, &rank, sizeof rank, MSG_DONTWAIT) != sizeof rank) continue;
    comm.peers[static_cast<size_t>(rank)] = {stranger, true};
    stranger = -1;
  }
  std::erase(comm.strangers, -1);
}

/// A message, of which `done` bytes have moved.
struct Message {
  bool leaves;
  int peer;
  char* data;
  size_t bytes;
  size_t done = 0;
};

/// Moves what can be moved of the first unfinished message in each direction of each connection.
/// Returns whether all is done.
bool move(ncclComm& comm, std::vector<Message>& messages) {
  if (comm.aborted || (comm.state != ncclSuccess && comm.state != ncclInProgress)) return false;
  bool all = true;
  for (int peer = 0; peer < comm.ranks; ++peer)
    for (const bool leaves : {true, false})
      for (Message& message : messages) {
        if (message.peer != peer || message.leaves != leaves || message.done == message.bytes) continue;
        const int socket = comm.peers[static_cast<size_t>(peer)].socket;
        const size_t some = std::min<size_t>(message.bytes - message.done, 4096);  // bit by bit
        const ssize_t moved = leaves ? send(socket, message.data + message.done, some, MSG_DONTWAIT | MSG_NOSIGNAL)
                                     : recv(socket, message.data + message.done, some, MSG_DONTWAIT);
        if (moved > 0) message.done += static_cast<size_t>(moved);
        if (moved == 0 || (moved < 0 && errno != EAGAIN && errno != EINTR)) comm.state = ncclRemoteError;
        if (message.done < message.bytes) {
          all = false;
          break;  // messages arrive in order
        }
      }
  return all;
}

std::vector<std::shared_ptr<ncclComm>> communicators;  // that were not aborted

/// What is between ncclGroupStart and ncclGroupEnd.
struct Group {
  int depth = 0;
  ncclComm* comm = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<Message> messages;
} group;

/// Those to itself need no connection: the n-th that leaves is the n-th that arrives.
bool deliver_to_self(int rank, std::vector<Message>& messages) {
  std::vector<Message*> leaving, arriving;
  for (Message& message : messages)
    if (message.peer == rank) (message.leaves ? leaving : arriving).push_back(&message);
  if (leaving.size() != arriving.size()) return false;
  for (size_t i = 0; i < leaving.size(); ++i) {
    if (leaving[i]->bytes != arriving[i]->bytes) return false;
    std::memcpy(arriving[i]->data, leaving[i]->data, leaving[i]->bytes);
    leaving[i]->done = arriving[i]->done = leaving[i]->bytes;
  }
  return true;
}

ncclResult_t launch(ncclComm& comm, cudaStream_t stream, std::vector<Message> messages) {
  const char* const fails = std::getenv("FAKE_NCCL_FAILS");
  ++comm.groups;
  comm.state = ncclInProgress;
  comm.polls = 3;
  const bool breaks = fails != nullptr && std::atoi(fails) == comm.groups;
  stream->waiting.push_back(
      [own = comm.shared_from_this(), breaks, started = false, messages = std::move(messages)]() mutable {
        if (breaks) own->state = ncclSystemError;
        if (breaks) return false;
        if (!started && !deliver_to_self(own->rank, messages)) own->state = ncclInvalidUsage;
        started = true;
        return move(*own, messages);
      });
  return ncclInProgress;
}

ncclResult_t add(bool leaves, void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                 cudaStream_t stream) {
  if (comm->state != ncclSuccess) return ncclInvalidUsage;  // the call before is not done
  if (type != ncclFloat32 || count == 0 || data == nullptr || peer < 0 || peer >= comm->ranks || group.depth == 0 ||
      (group.comm != nullptr && (group.comm != comm || group.stream != stream)))
    return ncclInvalidArgument;
  group.comm = comm;
  group.stream = stream;
  group.messages.push_back({leaves, peer, static_cast<char*>(data), count * sizeof(float)});
  return ncclSuccess;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  std::snprintf(id->internal, sizeof id->internal, "fake-nccl-%d-%ld-%ld", getpid(), now.tv_sec, now.tv_nsec);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  const ncclConfig_t plain = NCCL_CONFIG_INITIALIZER;
  if (config->size != plain.size || config->magic != plain.magic || config->blocking != 0) return ncclInvalidArgument;
  if (rank < 0 || rank >= ranks || std::strncmp(id.internal, "fake-nccl-", 10) != 0) return ncclInvalidArgument;
  const auto made = std::make_shared<ncclComm>();
  made->rank = rank;
  made->ranks = ranks;
  made->name = id.internal;
  made->peers.resize(static_cast<size_t>(ranks));
  made->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const Address own(address_of(*made, rank));
  if (bind(made->listener, own.data(), own.size) != 0 || listen(made->listener, ranks) != 0) return ncclSystemError;
  *comm = communicators.emplace_back(made).get();
  return ncclInProgress;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  comm->close_all();
  std::erase_if(communicators, [=](const auto& other) { return other.get() == comm; });  // work may hold it, too
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  if (comm->state == ncclInProgress && !comm->connected()) connect_more(*comm);
  if (comm->state == ncclInProgress && comm->connected() && --comm->polls <= 0) comm->state = ncclSuccess;
  *state = comm->state;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidUsage:
      return "invalid usage";
    default:
      return "invalid argument";
  }
}
const char* ncclGetLastError(ncclComm_t) { return "as\nthe stand-in says"; }

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0) return ncclSuccess;
  const Group ended = std::move(group);
  group = {};
  return ended.comm == nullptr ? ncclSuccess : launch(*ended.comm, ended.stream, ended.messages);
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(true, const_cast<void*>(data), count, type, peer, comm, stream);
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return add(false, data, count, type, peer, comm, stream);
}

/// Adds the last rank's values first: another order than that of blocks.
ncclResult_t ncclAllReduce(const void* sent, void* received, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  if (comm->state != ncclSuccess) return ncclInvalidUsage;
  if (type != ncclFloat32 || op != ncclSum || count == 0 || sent != received) return ncclInvalidArgument;
  auto* const own = static_cast<float*>(received);
  const auto rooms =
      std::make_shared<std::vector<std::vector<float>>>(static_cast<size_t>(comm->ranks), std::vector<float>(count));
  std::vector<Message> messages;
  for (int other = 0; other < comm->ranks; ++other) {
    messages.push_back({true, other, reinterpret_cast<char*>(own), count * sizeof(float)});
    messages.push_back(
        {false, other, reinterpret_cast<char*>((*rooms)[static_cast<size_t>(other)].data()), count * sizeof(float)});
  }
  const ncclResult_t result = launch(*comm, stream, messages);
  stream->waiting.push_back([=] {
    for (size_t i = 0; i < count; ++i) {
      own[i] = 0;
      for (auto room = rooms->rbegin(); room != rooms->rend(); ++room) own[i] += (*room)[i];
    }
    return true;
  });
  return result;
}

}  // extern "C"
