#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "engine/io/json.h"
#include "tools/timing/ceilings.h"
#include "tools/timing/forward.h"
#include "tools/timing/layers.h"
#include "tools/timing/side.h"

namespace nibblenet::tools {

/// Options of bench --compare.
struct ComparisonOptions {
  std::vector<int64_t> batches;
  double seconds = 1;               ///< sampling time of each measurement
  int rounds = 2;                   ///< times that the whole is repeated, to see how far it spreads
  double energy_seconds = 0;        ///< time to measure the energy of warm T224 passes; 0: not measured
  int image_size = 224;             ///< input pixels
  bool verbose = false;             ///< print each layer of each side, too
  const Dataset* images = nullptr;  ///< images of 32 x 32 to measure accuracy on; may be null
};

/// A comparison of one network on several sides, which take turns. It times every task, batch size
/// and state of the caches, and each layer alone, and compares each side's logits with the first's.
class Comparison {
 public:
  /// All sides are made from `floats`, which outlives this. `ceilings` are what times are compared
  /// with.
  Comparison(const ComparisonOptions& options, Ceilings ceilings, const StateDict& floats);

  /// Adds a side, whose backend outlives this. The others' logits are compared with the first
  /// side's.
  void add(const SideSpec& spec, Backend& backend);
  /// Measures. Calls `on_batch` after each batch size: to_json() then holds all of its results.
  /// Throws UsageError without a side, Stopped on Ctrl-C.
  void run(const std::function<void()>& on_batch = {});
  /// The value of "sides" in bench's JSON. Scripts for other frameworks write the same form: see
  /// tests/peers/README.md.
  nlohmann::json to_json() const;

 private:
  struct Key {
    Task task;
    int64_t batch;
    bool cold;
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  struct Measured {
    std::unique_ptr<Side> side;
    std::map<Key, std::vector<Latency>> latencies;       ///< by the host's clock, one a round
    std::map<Key, std::vector<Latency>> device;          ///< by the device's, where it has one
    std::map<Key, std::optional<int64_t>> operations;    ///< in a recorded pass
    std::map<Key, double> joules;                        ///< of an image
    std::map<int64_t, std::vector<LayerTiming>> layers;  ///< by batch size
    double relative_error = 0;                           ///< of the logits x from the first side's r: ||x - r|| / ||r||
    double agreement = 1;  ///< part of the images with the same likeliest class as the first side's
    std::optional<double> accuracy;
    std::optional<std::string> failure;  ///< the error that ended this side's measurements
  };

  /// Calls `measure` with each side that has not failed, from side `first` on, round about. An
  /// error of one side is printed, and ends this side's measurements alone. Throws the last one
  /// when no side is left.
  void for_each_side(size_t first, const std::function<void(Measured&)>& measure);
  void check_logits();
  void measure_accuracy();
  void time_round(int64_t batch, int round);
  void time_forward(Measured& measured, Task task, int64_t batch);
  void time_each_layer(int64_t batch);
  nlohmann::json side_json(const Measured& measured) const;

  ComparisonOptions options_;
  Ceilings ceilings_;
  const StateDict& floats_;
  ResampleTables tables_;
  std::vector<Measured> sides_;
  std::map<Backend*, CacheSweep> sweeps_;  ///< shared by the sides of a backend, since they are large
};

}  // namespace nibblenet::tools
