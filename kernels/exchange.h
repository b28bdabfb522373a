#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "kernels/training.h"

namespace nibblenet {

class Ranks;

/// Moves float32 numbers between the devices of the processes (ranks) that train one network, and
/// works on them, beside a backend's operations. What is queued runs in the order of the calls, and
/// may run while later operations of the backend do. Every function but name() is collective: all
/// ranks call it, in the same order. Throws Error where a rank is gone or silent.
class Exchange : public ParameterSteps {
 public:
  /// What moves the numbers, for reports: "NCCL 2.28.9".
  virtual std::string name() const = 0;

  /// What is queued from here on waits for the backend's operations that were called before.
  virtual void follow_backend() = 0;

  /// Numbers for a rank, in the backend's memory.
  struct Sent {
    int to;
    std::span<const float> values;
  };
  /// Room in the backend's memory for numbers of a rank.
  struct Received {
    int from;
    std::span<float> values;
  };
  /// Queues messages, all of which move at once. Between two ranks, messages arrive in the order in
  /// which they were sent. A message's two sides name the same length, which is not 0. A rank may
  /// send to itself. The memory stays until finish().
  virtual void exchange(std::span<const Sent> sent, std::span<const Received> received) = 0;

  /// Queues: adds up the values of all ranks, in place on each. The order of the sums is not
  /// promised.
  virtual void add_up(std::span<float> values) = 0;

  /// Waits until all that was queued is done. Operations of the backend called then see it.
  virtual void finish() = 0;
};

/// Why this build and machine have no NCCL, in one line; nothing when it can be loaded.
std::optional<std::string> nccl_problem();
/// An exchange through NCCL. Collective. Both must outlive it. Throws UsageError for a backend that
/// is not --device cuda, and without NCCL; CudaError for NCCL's errors.
std::unique_ptr<Exchange> make_nccl_exchange(Backend& backend, Ranks& ranks);

}  // namespace nibblenet
