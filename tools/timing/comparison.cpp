#include "tools/timing/comparison.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "layers/network/evaluate.h"
#include "tools/common/command_line.h"
#include "tools/common/progress.h"

namespace nibblenet::tools {
namespace {

std::vector<Task> tasks_of(const Side& side) {
  return side.folded() ? std::vector{Task::t32} : std::vector{Task::t224, Task::t32};
}

/// ||a - b|| / ||b||
double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto value = static_cast<double>(b[i]);
    difference += std::pow(static_cast<double>(a[i]) - value, 2);
    norm += value * value;
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// The part of the rows [classes] whose largest value is in the same place in `a` and `b`.
double agreement_of(const std::vector<float>& a, const std::vector<float>& b, int64_t classes) {
  const auto row_count = static_cast<int64_t>(a.size()) / classes;
  int64_t same = 0;
  for (int64_t i = 0; i < row_count; ++i) {
    const auto largest = [&](const std::vector<float>& values) {
      const auto row = values.begin() + i * classes;
      return std::max_element(row, row + classes) - row;
    };
    same += largest(a) == largest(b) ? 1 : 0;
  }
  return row_count == 0 ? 1.0 : static_cast<double>(same) / static_cast<double>(row_count);
}

template <class T>
nlohmann::json or_null(const std::optional<T>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

struct Rounds {
  double median = 0;  ///< of the rounds' medians
  double spread = 0;  ///< largest median / smallest median - 1
};

Rounds rounds_of(const std::vector<Latency>& latencies) {
  std::vector<double> medians;
  for (const Latency& latency : latencies) medians.push_back(latency.median);
  std::ranges::sort(medians);
  const size_t half = medians.size() / 2;
  return {(medians[half] + medians[(medians.size() - 1) / 2]) / 2, medians.back() / medians.front() - 1};
}

}  // namespace

Comparison::Comparison(const ComparisonOptions& options, Ceilings ceilings, const StateDict& floats)
    : options_(options),
      ceilings_(std::move(ceilings)),
      floats_(floats),
      tables_(small_image_tables(options.image_size)) {}

void Comparison::add(const SideSpec& spec, Backend& backend) {
  if (interrupted()) throw Stopped("stopped");
  sides_.push_back({.side = std::make_unique<Side>(spec, backend, floats_, tables_)});
}

void Comparison::run(const std::function<void()>& on_batch) {
  if (sides_.empty()) throw UsageError("there is nothing to compare");
  check_logits();
  if (options_.images != nullptr) measure_accuracy();
  fmt::print("{:<26} {:>5} {:>6} {:>6} {:>10} {:>8} {:>12}\n", "side", "task", "batch", "caches", "ms", "spread",
             "images/s");
  for (const int64_t batch : options_.batches) {
    for (int round = 0; round < options_.rounds; ++round) time_round(batch, round);
    for (const Measured& measured : sides_)
      for (const auto& [key, latencies] : measured.latencies) {
        if (key.batch != batch) continue;
        const Rounds rounds = rounds_of(latencies);
        fmt::print("{:<26} {:>5} {:>6} {:>6} {:>10.4f} {:>6.1f} % {:>12.1f}\n", measured.side->name(),
                   to_string(key.task), batch, key.cold ? "cold" : "warm", rounds.median, 100 * rounds.spread,
                   1000 * static_cast<double>(batch) / rounds.median);
        if (measured.joules.contains(key))
          fmt::print("{:<26} {:>5} {:>6} {:>6} {:>10.3g} mJ an image\n", "", "", "", "", 1e3 * measured.joules.at(key));
      }
    std::fflush(stdout);
    time_each_layer(batch);
    if (std::ranges::any_of(sides_,
                            [](const Measured& m) { return m.side->network().backend().device_memory().has_value(); }))
      fmt::print(
          "Layers alone: on a GPU the weights of one run arrive during the run before (PDL). Their times suit "
          "bandwidths, and are no latencies.\n");
    if (on_batch) on_batch();
  }
}

void Comparison::for_each_side(size_t first, const std::function<void(Measured&)>& measure) {
  const auto failed = [](const Measured& measured) { return measured.failure.has_value(); };
  for (size_t i = 0; i < sides_.size(); ++i) {
    Measured& measured = sides_[(first + i) % sides_.size()];
    if (failed(measured)) continue;
    try {
      measure(measured);
    } catch (const Stopped&) {
      throw;
    } catch (const std::exception& error) {
      measured.failure = error.what();
      if (std::ranges::all_of(sides_, failed)) throw;
      fmt::print("{}: not measured from here on: {}\n", measured.side->name(), *measured.failure);
    }
  }
}

void Comparison::check_logits() {
  constexpr int64_t images = 16;
  std::vector<float> reference;
  for_each_side(0, [&](Measured& measured) {
    TimedForward forward(measured.side->network(), options_.image_size, Task::t32, images);
    forward.once();
    if (reference.empty()) reference = forward.logits();
    measured.relative_error = relative_difference(forward.logits(), reference);
    measured.agreement = agreement_of(forward.logits(), reference, measured.side->network().classes());
  });
}

void Comparison::measure_accuracy() {
  constexpr int64_t batch = 128;
  const Preprocess preprocess = Preprocess::for_image_size(options_.image_size);
  for_each_side(0, [&](Measured& measured) {
    Progress progress(measured.side->name() + ", accuracy", "images");
    measured.accuracy =
        evaluate(measured.side->network(), *options_.images, preprocess, batch, std::ref(progress)).accuracy();
    fmt::print("{:<26} accuracy {:.2f} % of {}\n", measured.side->name(), 100 * *measured.accuracy,
               options_.images->size());
  });
}

/// Sides take turns in an order that rotates, so that a machine that slows down slows all of them.
void Comparison::time_round(int64_t batch, int round) {
  for_each_side(static_cast<size_t>(round), [&](Measured& measured) {
    for (const Task task : tasks_of(*measured.side)) time_forward(measured, task, batch);
  });
}

void Comparison::time_forward(Measured& measured, Task task, int64_t batch) {
  Network& network = measured.side->network();
  CacheSweep& sweep = sweeps_.try_emplace(&network.backend(), network.backend()).first->second;
  TimedForward forward(network, options_.image_size, task, batch);
  const std::string label = fmt::format("{}, {}, batch {}", measured.side->name(), to_string(task), batch);
  const auto once = [&] { return forward.once(); };
  const Key warm{task, batch, false}, cold{task, batch, true};
  const Latency of_warm = time_warm(once, options_.seconds, label);
  const Latency of_cold = time_cold(once, sweep, options_.seconds, label);
  measured.latencies[warm].push_back(of_warm);
  measured.latencies[cold].push_back(of_cold);
  if (const auto recording = forward.record_layers(network.layers().size())) {
    measured.device[warm].push_back(time_replays(*recording, options_.seconds, label));
    measured.device[cold].push_back(time_cold_replays(*recording, sweep, options_.seconds, label));
  }
  measured.operations[warm] = measured.operations[cold] = forward.operations();
  if (options_.energy_seconds == 0 || task != Task::t224 || measured.joules.contains(warm)) return;
  if (const auto joules = joules_of(once, network.backend(), options_.energy_seconds, label))
    measured.joules[warm] = *joules / static_cast<double>(batch);
}

void Comparison::time_each_layer(int64_t batch) {
  for_each_side(0, [&](Measured& measured) {
    if (measured.side->folded()) return;
    Network& network = measured.side->network();
    measured.layers[batch] = time_layers(network.backend(), measured.side->parameters(), network.precision(),
                                         options_.image_size, batch, options_.seconds / 4, measured.side->name());
  });
  for (const Measured& measured : sides_) {
    const auto timings = measured.layers.find(batch);
    if (timings == measured.layers.end()) continue;
    double warm = 0, bounds = 0;
    for (const LayerTiming& timing : timings->second) {
      warm += timing.warm.median;
      bounds += bound_of(timing, ceilings_).ms();
    }
    fmt::print("{:<26} layers alone, batch {}: {:.4f} ms, bound {:.4f} ms, {:.0f} % of it\n", measured.side->name(),
               batch, warm, bounds, 100 * bounds / warm);
    if (options_.verbose) fmt::print("{}", layers_table(timings->second, ceilings_));
  }
}

nlohmann::json Comparison::side_json(const Measured& measured) const {
  Side& side = *measured.side;
  const SizeRow total = sum(side.network().ledger(), "total");
  nlohmann::json json = {{"side", side.name()},
                         {"engine", "nibblenet, " + side.network().backend().name()},
                         {"description", side.network().backend().description()},
                         {"weights", total.scheme},
                         {"activations", to_string(side.network().precision())},
                         {"first_folded", side.folded()},
                         {"weight_bytes", total.resident.total()},
                         {"relative_error", measured.relative_error},
                         {"agreement", measured.agreement},
                         {"accuracy", or_null(measured.accuracy)},
                         {"not_measured", or_null(measured.failure)},
                         {"results", nlohmann::json::array()},
                         {"layers", nlohmann::json::array()}};
  for (const auto& [key, latencies] : measured.latencies) {
    const Rounds rounds = rounds_of(latencies);
    nlohmann::json result = {{"task", to_string(key.task)},
                             {"batch", key.batch},
                             {"caches", key.cold ? "cold" : "warm"},
                             {"median_ms", rounds.median},
                             {"spread", rounds.spread},
                             {"rounds", nlohmann::json::array()},
                             {"device_ms", nullptr},
                             {"device_rounds", nlohmann::json::array()},
                             {"operations", or_null(measured.operations.at(key))},
                             {"joules_per_image", nullptr}};
    if (measured.joules.contains(key)) result["joules_per_image"] = measured.joules.at(key);
    for (const Latency& latency : latencies) result["rounds"].push_back(tools::to_json(latency));
    if (const auto device = measured.device.find(key); device != measured.device.end()) {
      result["device_ms"] = rounds_of(device->second).median;
      for (const Latency& latency : device->second) result["device_rounds"].push_back(tools::to_json(latency));
    }
    json["results"].push_back(std::move(result));
  }
  for (const auto& [batch, timings] : measured.layers)
    for (const LayerTiming& timing : timings) {
      nlohmann::json layer = tools::to_json(timing, ceilings_);
      layer["batch"] = batch;
      json["layers"].push_back(std::move(layer));
    }
  return json;
}

nlohmann::json Comparison::to_json() const {
  nlohmann::json json = nlohmann::json::array();
  for (const Measured& measured : sides_) json.push_back(side_json(measured));
  return json;
}

}  // namespace nibblenet::tools
