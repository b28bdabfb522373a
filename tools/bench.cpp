#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>

#include "engine/core/random.h"
#include "engine/model/network.h"
#include "tools/common/command_line.h"
#include "tools/common/model_search.h"
#include "tools/common/progress.h"

namespace {

using namespace nibblenet;
using namespace nibblenet::tools;
using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Median and spread of the time of one forward pass, in milliseconds.
struct Latency {
  double median = 0, p10 = 0, p90 = 0;
  size_t samples = 0;
};

Latency latency_of(std::vector<double> samples) {
  std::ranges::sort(samples);
  const auto percentile = [&](double fraction) {
    return samples[static_cast<size_t>(fraction * static_cast<double>(samples.size() - 1) + 0.5)];
  };
  return {percentile(0.5), percentile(0.1), percentile(0.9), samples.size()};
}

/// How often to do something: until `seconds` are over and it was done `often` times; where that would take more than
/// `most_times` the seconds, less often, but `at_least` times.
struct Budget {
  double seconds;
  int often;
  int at_least;
  static constexpr double most_times = 10;

  /// How often it will be, as far as `done` times in `spent` milliseconds tell.
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
  const auto start = Clock::now();
  double spent = 0;
  for (int done = 0; !budget.is_spent(done, spent); spent = milliseconds_since(start)) {
    if (interrupted()) throw Stopped("stopped");
    work();
    ++done;
    progress.update(done, budget.expected(done, milliseconds_since(start)));
  }
}

/// Writes more memory than the caches hold, so that neither weights nor inputs are left in them.
class CacheSweep {
 public:
  explicit CacheSweep(Backend& backend)
      : backend_(backend),
        buffer_(backend, {static_cast<int64_t>(backend.bytes_that_empty_caches() / sizeof(float))},
                MemoryCategory::data) {
    // A first value for every element: reading what was never written would not go to memory.
    const std::vector<float> ones(size_t{1} << 20, 1.0F);
    for (int64_t done = 0; done < buffer_.elements();) {
      const int64_t count = std::min(static_cast<int64_t>(ones.size()), buffer_.elements() - done);
      backend_.copy_from_host(buffer_.data() + done, ones.data(), sizeof(float) * static_cast<size_t>(count));
      done += count;
    }
  }
  size_t bytes() const { return sizeof(float) * static_cast<size_t>(buffer_.elements()); }
  void operator()() {
    backend_.relu_forward(buffer_.view(), buffer_.view());
    backend_.synchronize();
  }

 private:
  Backend& backend_;
  Tensor<float> buffer_;
};

/// Forward passes of one batch size, from a batch in the backend's memory to logits in the host's.
class Forward {
 public:
  Forward(Network& network, int image_size, int64_t batch)
      : backend_(network.backend()),
        pass_(network, 0, network.layers().size(), shape(batch, image_size), Pass::Mode::inference),
        images_(backend_, shape(batch, image_size), MemoryCategory::data),
        logits_(static_cast<size_t>(batch * network.classes())) {
    // Not zeros: processors are faster, and use less power, on those.
    Tensor<float> host(host_memory(), images_.shape(), MemoryCategory::data);
    Random random(1);
    for (float& value : host.view()) value = 4.0F * random.uniform() - 2.0F;
    backend_.copy_from_host(images_.data(), host.data(), host.view().span().size_bytes());
  }

  /// Milliseconds of one pass.
  double once() {
    const auto start = Clock::now();
    const auto output = pass_.forward(std::as_const(images_).view());
    backend_.copy_to_host(logits_.data(), output.data(), output.span().size_bytes());
    return milliseconds_since(start);
  }

 private:
  static Shape shape(int64_t batch, int64_t image_size) { return {batch, image_size, image_size, 3}; }

  Backend& backend_;
  Pass pass_;
  Tensor<float> images_;
  std::vector<float> logits_;
};

constexpr double shortest_sample = 2;  ///< milliseconds: shorter passes are timed several in a row

/// Everything in the caches that fits: one pass after the other.
Latency time_warm(Forward& forward, double seconds, const std::string& label) {
  double shortest = std::numeric_limits<double>::infinity();
  repeat({.seconds = std::min(0.5, seconds), .often = 50, .at_least = 2}, label + ", warming up",
         [&] { shortest = std::min(shortest, forward.once()); });
  const int in_a_row = std::max(1, static_cast<int>(std::ceil(shortest_sample / shortest)));
  std::vector<double> samples;
  repeat({.seconds = seconds, .often = 30, .at_least = 3}, label + ", warm", [&] {
    double sum = 0;
    for (int i = 0; i < in_a_row; ++i) sum += forward.once();
    samples.push_back(sum / in_a_row);
  });
  return latency_of(std::move(samples));
}

/// Nothing in the caches: they are emptied before every pass, outside of what is timed.
Latency time_cold(Forward& forward, CacheSweep& sweep, double seconds, const std::string& label) {
  std::vector<double> samples;
  repeat({.seconds = seconds, .often = 30, .at_least = 3}, label + ", cold", [&] {
    sweep();
    samples.push_back(forward.once());
  });
  return latency_of(std::move(samples));
}

struct Timing {
  int64_t batch = 0;
  Latency warm;
  Latency cold;

  double images_per_second() const { return 1000.0 * static_cast<double>(batch) / warm.median; }
};

void print(const Timing& t) {
  fmt::print("{:>6} {:>10.3f} {:>9.3f} {:>9.3f} {:>11.1f} {:>10.3f} {:>9.3f} {:>9.3f}\n", t.batch, t.warm.median,
             t.warm.p10, t.warm.p90, t.images_per_second(), t.cold.median, t.cold.p10, t.cold.p90);
  std::fflush(stdout);
}

nlohmann::json to_json(const Timing& t) {
  return {{"batch", t.batch},
          {"latency_ms", t.warm.median},
          {"latency_ms_p10", t.warm.p10},
          {"latency_ms_p90", t.warm.p90},
          {"samples", t.warm.samples},
          {"images_per_second", t.images_per_second()},
          {"cold_latency_ms", t.cold.median},
          {"cold_latency_ms_p10", t.cold.p10},
          {"cold_latency_ms_p90", t.cold.p90},
          {"cold_samples", t.cold.samples}};
}

struct Options {
  std::string model;
  std::vector<int64_t> batches = {1, 8, 128};
  double seconds = 2;
  Checksums checksums = Checksums::warn;
  DeviceOptions device;
  std::string json;
};

void bench(const Options& options) {
  const auto backend = options.device.make();
  const std::filesystem::path model = find_model(options.model, ModelKind::packed);
  StateDict dict = load_model(model, options.checksums);
  const int image_size = image_size_of(dict.metadata);
  const Precision precision = options.device.precision_on(*backend);
  Network network(*backend, std::move(dict), precision);
  CacheSweep sweep(*backend);
  fmt::print("{}, {}, images of {} x {}; cold: after writing {} MiB\n", backend->description(), to_string(precision),
             image_size, image_size, sweep.bytes() >> 20);
  fmt::print("{:>6} {:>10} {:>9} {:>9} {:>11} {:>10} {:>9} {:>9}\n", "batch", "warm ms", "p10", "p90", "images/s",
             "cold ms", "p10", "p90");
  nlohmann::json document = {
      {"model", model.string()},           {"device", backend->name()}, {"description", backend->description()},
      {"precision", to_string(precision)}, {"image_size", image_size},  {"cold_sweep_bytes", sweep.bytes()}};
  for (const int64_t batch : options.batches) {
    Forward forward(network, image_size, batch);
    const std::string label = fmt::format("batch {}", batch);
    const Timing timing{.batch = batch,
                        .warm = time_warm(forward, options.seconds, label),
                        .cold = time_cold(forward, sweep, options.seconds, label)};
    print(timing);
    document["results"].push_back(to_json(timing));
  }
  write_json(options.json, document);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Times the forward pass of a float or packed model against the batch size, from images in the device's memory to "
      "logits in the host's. Warm: one pass after the other, so that weights and images stay in the caches as far as "
      "they fit. Cold: before each pass more memory is written than the caches hold; that writing is not timed. "
      "Printed "
      "are medians, the 10th and the 90th percentile; images/s are the warm median's. Each batch size is warmed up for "
      "50 passes and half a second, then sampled until --seconds are over and there are 30 samples, warm and cold; "
      "where these would take more than ten times --seconds, there are fewer, but at least 3. Passes shorter than 2 ms "
      "are timed several in a row when warm.",
      "bench");
  Options options;
  app.add_option("MODEL", options.model,
                 fmt::format("Float or packed model ({}); without it the newest packed one in weights/", model_files));
  app.add_option("--batch", options.batches, "Batch sizes, separated by commas")
      ->delimiter(',')
      ->allow_extra_args(false)  // what follows may be MODEL
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "Sample each batch size for so long, warm and again cold")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  add_strict_option(app, options.checksums);
  options.device.add_to(app);
  options.device.add_precision_to(app);
  add_json_option(app, options.json);
  return run_tool(app, argc, argv, [&] {
    catch_interrupts();
    bench(options);
  });
}
