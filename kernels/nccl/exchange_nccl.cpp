#include "kernels/nccl/exchange_nccl.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "engine/core/stopwatch.h"

namespace nibblenet {

NcclExchange::NcclExchange(CudaBackend& backend, Ranks& ranks) : backend_(backend), ranks_(ranks) {
  ncclUniqueId id{};
  const bool first = ranks.rank() == 0;
  if (first) check(nccl().get_unique_id(&id), "ncclGetUniqueId");
  const std::string shared = ranks.gather(first ? std::string_view(id.internal, sizeof id.internal) : "")[0];
  std::memcpy(id.internal, shared.data(), sizeof id.internal);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  settle(nccl().init_rank(&communicator_, ranks.size(), id, ranks.rank(), &config), "ncclCommInitRankConfig");
}

void NcclExchange::abort() {
  if (communicator_ != nullptr) nccl().abort(std::exchange(communicator_, nullptr));
}

void NcclExchange::follow_backend() {
  before_.record(backend_.stream());
  stream_.wait(before_);
}

void NcclExchange::exchange(std::span<const Sent> sent, std::span<const Received> received) {
  if (sent.empty() && received.empty()) return;
  check(nccl().group_start(), "ncclGroupStart");
  for (const Sent& message : sent)
    check(nccl().send(message.values.data(), message.values.size(), ncclFloat32, message.to, communicator_,
                      stream_.get()),
          "ncclSend");
  for (const Received& room : received)
    check(nccl().receive(room.values.data(), room.values.size(), ncclFloat32, room.from, communicator_, stream_.get()),
          "ncclRecv");
  settle(nccl().group_end(), "ncclGroupEnd");
}

void NcclExchange::add_up(std::span<float> values) {
  settle(nccl().all_reduce(values.data(), values.data(), values.size(), ncclFloat32, ncclSum, communicator_,
                           stream_.get()),
         "ncclAllReduce");
}

void NcclExchange::finish() {
  done_.record(stream_);
  wait_until([this] { return done_.reached(); });
}

/// Sleeps between polls after a while, so that ranks may share a core.
void NcclExchange::wait_until(const std::function<bool()>& ready) {
  const Stopwatch watch;
  double looked = 0;
  for (int64_t polls = 0; !ready(); ++polls) {
    if (watch.seconds() > looked + 0.05) {
      looked = watch.seconds();
      ncclResult_t state = ncclSuccess;
      check(nccl().get_async_error(communicator_, &state), "ncclCommGetAsyncError");
      if (state != ncclInProgress) check(state, "waiting for other ranks");
      expect_others(looked);
    }
    if (polls > 1000) std::this_thread::sleep_for(std::chrono::microseconds(polls < 5000 ? 20 : 200));
  }
}

void NcclExchange::settle(ncclResult_t result, const char* what) {
  if (result == ncclInProgress)
    wait_until([&] {
      check(nccl().get_async_error(communicator_, &result), "ncclCommGetAsyncError");
      return result != ncclInProgress;
    });
  check(result, what);
}

void NcclExchange::check(ncclResult_t result, const char* what) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  for (int look = 0; look < 20; ++look) {  // a rank that dies closes its connections before it has ended
    expect_others(0);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  const char* const more = nccl().get_last_error(communicator_);
  std::string text = fmt::format("{}: NCCL says: {}", what, nccl().get_error_string(result));
  if (more != nullptr && *more != '\0') text += fmt::format(" ({})", more);
  std::ranges::replace(text, '\n', ' ');
  abort();
  throw CudaError(text);
}

void NcclExchange::expect_others(double seconds) {
  try {
    ranks_.expect_present(seconds);
  } catch (...) {
    abort();
    throw;
  }
}

}  // namespace nibblenet
