#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/core/stopwatch.h"
#include "engine/io/json.h"
#include "kernels/backend.h"

namespace nibblenet::tools {

/// Median, 10th and 90th percentile of some times, in milliseconds, and the times themselves.
struct Latency {
  double median = 0, p10 = 0, p90 = 0;
  std::vector<double> samples;  ///< in the order in which they were taken
};
/// The percentiles of at least one sample.
Latency latency_of(std::vector<double> samples);
/// A latency in bench's JSON: median_ms, p10_ms, p90_ms, samples (how many) and samples_ms (all of
/// them).
nlohmann::json to_json(const Latency& latency);

/// A buffer larger than a backend's caches. Writing it drives weights and inputs out of them.
class CacheSweep {
 public:
  /// Allocates and fills the buffer.
  explicit CacheSweep(Backend& backend);
  size_t bytes() const { return sizeof(float) * static_cast<size_t>(buffer_.elements()); }
  /// Writes the buffer, and waits until that is done.
  void operator()();
  /// Queues the writing, and does not wait.
  void queue();

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

/// Times replays by the device's own clock, one after the other or each behind a sweep that is not
/// timed. Warms up and takes samples as time_warm() and time_cold() do. Throws Stopped on Ctrl-C.
Latency time_replays(Recording& recording, double seconds, const std::string& label);
Latency time_cold_replays(Recording& recording, CacheSweep& sweep, double seconds, const std::string& label);

/// Joules that the device uses for one run, as the mean over at least `seconds`. Starts and ends
/// when the device renews its count of joules; returns nothing if it has none. Throws Stopped on
/// Ctrl-C.
std::optional<double> joules_of(const TimedOnce& once, Backend& backend, double seconds, const std::string& label);

}  // namespace nibblenet::tools
