#pragma once

#include <omp.h>

#include <atomic>
#include <cmath>

#include "engine/core/stopwatch.h"

namespace nibblenet::python {

/// What work on the CPU is expected to take.
struct Brevity {
  double seconds = INFINITY;
  int threads = 0;  ///< that compute; 0: nobody knows
};

/// How long work of a kind takes, learnt from the last of it. Threads may share one.
class Pace {
 public:
  Pace() = default;
  Pace(const Pace&) {}  // which learns anew
  Pace& operator=(const Pace&) = delete;

  /// What so much work is expected to take.
  Brevity of(double amount) const { return {seconds_ * amount, threads_}; }
  /// Seconds that the last of it took; NaN before.
  double last() const { return last_; }
  /// Calls work(), and notes what so much of it took.
  template <class Work>
  auto timed(double amount, Work work) {
    struct Note {
      Pace& pace;
      double amount;
      Stopwatch watch;
      ~Note() {
        pace.last_ = watch.seconds();
        if (amount > 0) pace.seconds_ = pace.last_ / amount;
        pace.threads_ = omp_get_max_threads();
      }
    };
    const Note note{*this, amount, {}};
    return work();
  }

 private:
  std::atomic<double> seconds_ = INFINITY;  ///< of a unit
  std::atomic<int> threads_ = 0;
  std::atomic<double> last_ = NAN;
};

}  // namespace nibblenet::python
