#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine/core/stopwatch.h"
#include "kernels/backend.h"

namespace nibblenet::tools {

/// Median and spread of the time of something, in milliseconds.
struct Latency {
  double median = 0, p10 = 0, p90 = 0;
  size_t samples = 0;
};
/// Of at least one sample.
Latency latency_of(std::vector<double> samples);

/// Writes more memory than the caches hold, so that neither weights nor inputs are left in them.
class CacheSweep {
 public:
  /// Allocates what fills the backend's caches.
  explicit CacheSweep(Backend& backend);
  size_t bytes() const { return sizeof(float) * static_cast<size_t>(buffer_.elements()); }
  /// Writes it, so that caches hold nothing else.
  void operator()();

 private:
  Backend& backend_;
  Tensor<float> buffer_;
};

/// Uniform in [low, high), the same values on every run; beyond a million of them they repeat.
std::vector<float> random_values(int64_t count, float low, float high);

/// Milliseconds: what is shorter is timed several times in a row.
inline constexpr double shortest_sample = 2;

/// Does something once, from start to its end, and returns the milliseconds it took.
using TimedOnce = std::function<double()>;

/// Everything in the caches that fits: one time after the other, warmed up first, short ones
/// several in a row. `label` is for the progress line. Throws Stopped on Ctrl-C.
Latency time_warm(const TimedOnce& once, double seconds, const std::string& label);
/// Nothing in the caches: they are emptied before every time, outside of what is timed.
Latency time_cold(const TimedOnce& once, CacheSweep& sweep, double seconds, const std::string& label);

/// Joules that the device uses for one of it, over `seconds` and on to the moments when the device
/// renews its count; nothing where it does not count. Throws Stopped on Ctrl-C.
std::optional<double> joules_of(const TimedOnce& once, Backend& backend, double seconds, const std::string& label);

}  // namespace nibblenet::tools
