#pragma once

#include <span>

#include "kernels/backend_memory.h"

namespace nibblenet {

/// Asynchronous copies to the host. Their destinations must outlive this.
class HostCopies {
 public:
  explicit HostCopies(BackendMemory& backend) : backend_(backend) {}
  ~HostCopies() {
    try {
      finish();
    } catch (const Error&) {  // as the next call will say
    }
  }
  HostCopies(const HostCopies&) = delete;
  HostCopies& operator=(const HostCopies&) = delete;

  /// Queues a copy of to.size() numbers.
  void queue(std::span<float> to, const float* from) {
    if (!to.empty()) backend_.copy_to_host_later(to.data(), from, to.size_bytes());
  }
  /// Waits for the copies, not for operations behind them.
  void finish() { backend_.finish_copies(); }

 private:
  BackendMemory& backend_;
};

}  // namespace nibblenet
