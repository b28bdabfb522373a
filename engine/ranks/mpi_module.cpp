#include "engine/ranks/mpi_module.h"

#include <mpi.h>

#include <algorithm>
#include <string>
#include <vector>

// MPI's C interface alone, so that any implementation will do.

namespace {

std::string error_text;
std::vector<MPI_Request> requests;
std::vector<int> peers;  // of the requests; -1: all

int32_t checked(int code) {
  if (code == MPI_SUCCESS) return 0;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  error_text.assign(text, static_cast<size_t>(length));
  return 1;
}

int32_t start(int32_t* rank, int32_t* size) {
  int given = 0;
  if (checked(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &given)) != 0) return 1;
  if (checked(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN)) != 0) return 1;
  return checked(MPI_Comm_rank(MPI_COMM_WORLD, rank)) | checked(MPI_Comm_size(MPI_COMM_WORLD, size));
}

/// MPI counts in int: longer messages travel in parts, which arrive in order.
template <class Start>
int32_t in_parts(const NibblenetMessage& message, Start start_part) {
  constexpr uint64_t most = uint64_t{1} << 30;
  for (uint64_t done = 0; done < message.bytes; done += most) {
    requests.push_back(MPI_REQUEST_NULL);
    peers.push_back(message.peer);
    if (checked(start_part(static_cast<char*>(message.data) + done,
                           static_cast<int>(std::min(most, message.bytes - done)), &requests.back())) != 0)
      return 1;
  }
  return 0;
}

int32_t begin(const NibblenetMessage* sent, int32_t sends, const NibblenetMessage* received, int32_t receives) {
  for (int32_t i = 0; i < receives; ++i) {
    const int peer = received[i].peer;
    if (in_parts(received[i], [&](void* data, int bytes, MPI_Request* request) {
          return MPI_Irecv(data, bytes, MPI_BYTE, peer, 0, MPI_COMM_WORLD, request);
        }) != 0)
      return 1;
  }
  for (int32_t i = 0; i < sends; ++i) {
    const int peer = sent[i].peer;
    if (in_parts(sent[i], [&](void* data, int bytes, MPI_Request* request) {
          return MPI_Isend(data, bytes, MPI_BYTE, peer, 0, MPI_COMM_WORLD, request);
        }) != 0)
      return 1;
  }
  return 0;
}

int32_t begin_sum(float* values, uint64_t count) {
  constexpr uint64_t most = uint64_t{1} << 28;
  for (uint64_t done = 0; done < count; done += most) {
    requests.push_back(MPI_REQUEST_NULL);
    peers.push_back(-1);
    if (checked(MPI_Iallreduce(MPI_IN_PLACE, values + done, static_cast<int>(std::min(most, count - done)), MPI_FLOAT,
                               MPI_SUM, MPI_COMM_WORLD, &requests.back())) != 0)
      return 1;
  }
  return 0;
}

int32_t poll(int32_t* pending, int32_t* peer) {
  int done = 0;
  if (checked(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE)) != 0)
    return 1;
  *pending = done != 0 ? 0 : static_cast<int32_t>(requests.size());
  if (done != 0) {
    requests.clear();
    peers.clear();
    return 0;
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    int over = 0;
    if (requests[i] == MPI_REQUEST_NULL) continue;
    if (checked(MPI_Request_get_status(requests[i], &over, MPI_STATUS_IGNORE)) != 0) return 1;
    if (over != 0) continue;
    *peer = peers[i];
    break;
  }
  return 0;
}

int32_t finish() { return checked(MPI_Finalize()); }
void abort_all(int32_t code) { MPI_Abort(MPI_COMM_WORLD, code); }
const char* error() { return error_text.c_str(); }

constexpr NibblenetMpi functions{nibblenet_mpi_version, start, begin, begin_sum, poll, finish, abort_all, error};

}  // namespace

extern "C" __attribute__((visibility("default"))) const NibblenetMpi* nibblenet_mpi() { return &functions; }
