#include "tools/timing/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/core/random.h"
#include "tools/common/command_line.h"
#include "tools/common/progress.h"

namespace nibblenet::tools {
namespace {

/// When to stop repeating: after `seconds` and `often` repetitions. When these would take more than
/// `most_times` the seconds, earlier, but not before `at_least` repetitions.
struct Budget {
  double seconds;
  int often;
  int at_least;
  static constexpr double most_times = 10;

  /// The repetitions to expect in all, after `done` of them took `spent` milliseconds.
  int64_t expected(int done, double spent) const {
    const double each = spent / done, time = 1000 * seconds;
    return static_cast<int64_t>(
        std::max({static_cast<double>(at_least), time / each, std::min<double>(often, most_times * time / each)}));
  }
  bool is_spent(int done, double spent) const {
    if (done < at_least) return false;
    return spent >= 1000 * seconds && (done >= often || spent >= 1000 * most_times * seconds);
  }
};

/// Calls `work` within the budget, showing how far it has come. Throws Stopped on Ctrl-C.
void repeat(const Budget& budget, const std::string& label, const std::function<void()>& work) {
  Progress progress(label, "samples");
  const Stopwatch watch;
  double spent = 0;
  for (int done = 0; !budget.is_spent(done, spent); spent = watch.milliseconds()) {
    if (interrupted()) throw Stopped("stopped");
    work();
    ++done;
    progress.update(done, budget.expected(done, watch.milliseconds()));
  }
}

}  // namespace

Latency latency_of(std::vector<double> samples) {
  std::vector<double> sorted = samples;
  std::ranges::sort(sorted);
  const auto percentile = [&](double fraction) {
    return sorted[static_cast<size_t>(fraction * static_cast<double>(sorted.size() - 1) + 0.5)];
  };
  return {percentile(0.5), percentile(0.1), percentile(0.9), std::move(samples)};
}

nlohmann::json to_json(const Latency& latency) {
  return {{"median_ms", latency.median},
          {"p10_ms", latency.p10},
          {"p90_ms", latency.p90},
          {"samples", latency.samples.size()},
          {"samples_ms", latency.samples}};
}

CacheSweep::CacheSweep(Backend& backend)
    : backend_(backend),
      buffer_(backend, {static_cast<int64_t>(backend.bytes_that_empty_caches() / sizeof(float))},
              MemoryCategory::data) {
  // Writes every element first: reads of memory that was never written would not reach it.
  const std::vector<float> ones(size_t{1} << 20, 1.0F);
  for (int64_t done = 0; done < buffer_.elements();) {
    const int64_t count = std::min(static_cast<int64_t>(ones.size()), buffer_.elements() - done);
    backend_.copy_from_host(buffer_.data() + done, ones.data(), sizeof(float) * static_cast<size_t>(count));
    done += count;
  }
}

void CacheSweep::operator()() {
  queue();
  backend_.synchronize();
}

void CacheSweep::queue() { backend_.relu_forward(buffer_.view(), buffer_.view()); }

std::vector<float> random_values(int64_t count, float low, float high) {
  const size_t period = std::min(static_cast<size_t>(count), size_t{1} << 20);
  std::vector<float> values(static_cast<size_t>(count));
  Random random(1);
  for (size_t i = 0; i < period; ++i) values[i] = low + (high - low) * random.uniform();
  for (size_t done = period; done < values.size();) {
    const size_t more = std::min(period, values.size() - done);
    std::copy_n(values.begin(), more, values.begin() + static_cast<std::ptrdiff_t>(done));
    done += more;
  }
  return values;
}

namespace {

/// Runs the work `count` times in a row, and returns the mean in milliseconds.
using TimedRuns = std::function<double(int count)>;

Latency time_warm_runs(const TimedRuns& mean_of, double seconds, const std::string& label) {
  double shortest = std::numeric_limits<double>::infinity();
  repeat({.seconds = std::min(0.5, seconds), .often = 50, .at_least = 2}, label + ", warming up",
         [&] { shortest = std::min(shortest, mean_of(1)); });
  const int in_a_row = std::max(1, static_cast<int>(std::ceil(shortest_sample / shortest)));
  std::vector<double> samples;
  repeat({.seconds = seconds, .often = 30, .at_least = 3}, label + ", warm",
         [&] { samples.push_back(mean_of(in_a_row)); });
  return latency_of(std::move(samples));
}

Latency time_cold_once(const TimedOnce& once_cold, double seconds, const std::string& label) {
  std::vector<double> samples;
  repeat({.seconds = seconds, .often = 30, .at_least = 3}, label + ", cold", [&] { samples.push_back(once_cold()); });
  return latency_of(std::move(samples));
}

}  // namespace

Latency time_warm(const TimedOnce& once, double seconds, const std::string& label) {
  const auto mean_of = [&](int count) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += once();
    return sum / count;
  };
  return time_warm_runs(mean_of, seconds, label);
}

Latency time_cold(const TimedOnce& once, CacheSweep& sweep, double seconds, const std::string& label) {
  const auto once_cold = [&] {
    sweep();
    return once();
  };
  return time_cold_once(once_cold, seconds, label);
}

Latency time_replays(Recording& recording, double seconds, const std::string& label) {
  return time_warm_runs([&](int count) { return recording.device_time(count, {}); }, seconds, label + ", device");
}

Latency time_cold_replays(Recording& recording, CacheSweep& sweep, double seconds, const std::string& label) {
  return time_cold_once([&] { return recording.device_time(1, [&] { sweep.queue(); }); }, seconds, label + ", device");
}

std::optional<double> joules_of(const TimedOnce& once, Backend& backend, double seconds, const std::string& label) {
  constexpr double milliseconds_between_looks = 20;
  if (!backend.joules()) return std::nullopt;
  int64_t passes = 0;
  const auto run_for = [&](double milliseconds) {
    const Stopwatch watch;
    do {
      if (interrupted()) throw Stopped("stopped");
      once();
      ++passes;
    } while (watch.milliseconds() < milliseconds);
  };
  const auto count = [&] { return backend.joules().value_or(0); };
  /// Runs the work until the device's count changes, and returns the new count.
  const auto renewed = [&] {
    const double before = count();
    for (const Stopwatch watch; watch.milliseconds() < 1e4;) {
      run_for(milliseconds_between_looks);
      if (const double now = count(); now != before) return now;
    }
    fail<Error>("{}: the device's energy counter does not advance", label);
  };
  const double begin = renewed();
  passes = 0;
  run_for(1e3 * seconds);
  const double end = renewed();
  return (end - begin) / static_cast<double>(passes);
}

}  // namespace nibblenet::tools
