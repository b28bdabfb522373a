#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/core/stopwatch.h"
#include "kernels/backend.h"

namespace nibblenet::tools {

/// Median, 10th and 90th percentile of some times, in milliseconds.
struct Latency {
  double median = 0, p10 = 0, p90 = 0;
  size_t samples = 0;
};
/// The percentiles of at least one sample.
Latency latency_of(std::vector<double> samples);

/// A buffer larger than a backend's caches. Writing it drives weights and inputs out of them.
class CacheSweep {
 public:
  /// Allocates and fills the buffer.
  explicit CacheSweep(Backend& backend);
  size_t bytes() const { return sizeof(float) * static_cast<size_t>(buffer_.elements()); }
  /// Writes the buffer, and waits until that is done.
  void operator()();

 private:
  Backend& backend_;
  Tensor<float> buffer_;
};

/// Uniform random values in [low, high), the same on every run. Values repeat after 2^20.
std::vector<float> random_values(int64_t count, float low, float high);

/// The shortest sample in milliseconds: shorter work is timed several times in a row.
inline constexpr double shortest_sample = 2;

/// Runs the work to be timed once, to its end, and returns the milliseconds that it took.
using TimedOnce = std::function<double()>;

/// Times runs one after the other, so that the caches keep what fits. Warms up first; samples of
/// short work are the mean of several runs. `label` is for the progress line. Throws Stopped on
/// Ctrl-C.
Latency time_warm(const TimedOnce& once, double seconds, const std::string& label);
/// Times runs with empty caches: each run follows a sweep, which is not timed. Throws Stopped on
/// Ctrl-C.
Latency time_cold(const TimedOnce& once, CacheSweep& sweep, double seconds, const std::string& label);

/// Joules that the device uses for one run, as the mean over at least `seconds`. Starts and ends
/// when the device renews its count of joules; returns nothing if it has none. Throws Stopped on
/// Ctrl-C.
std::optional<double> joules_of(const TimedOnce& once, Backend& backend, double seconds, const std::string& label);

}  // namespace nibblenet::tools
