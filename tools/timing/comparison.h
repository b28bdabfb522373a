#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/io/dataset.h"
#include "tools/timing/ceilings.h"
#include "tools/timing/forward.h"
#include "tools/timing/layers.h"
#include "tools/timing/side.h"

namespace nibblenet::tools {

/// Options of bench --compare.
struct ComparisonOptions {
  std::vector<int64_t> batches;
  double seconds = 1;         ///< each measurement samples for so long
  int rounds = 2;             ///< the whole is repeated, to see how far it spreads
  double energy_seconds = 0;  ///< a warm pass's energy is measured for so long, from prepared images; 0: it is not
  int image_size = 224;
  const Dataset* images = nullptr;  ///< 32 x 32, what every side's accuracy is measured on; may be null
};

/// The same network on several sides, which take turns: every task, batch size and state of the
/// caches; layers alone; and how far each side's logits are from the first side's.
class Comparison {
 public:
  /// The backends outlive it. `floats` is the model that all sides are made from; the first side is
  /// what the others' logits are compared with. Throws UsageError without a side.
  Comparison(const ComparisonOptions& options, const StateDict& floats);

  /// Adds a side to the comparison.
  void add(const SideSpec& spec, Backend& backend);
  /// `on_batch` is called when a batch size is done: to_json() then holds all of its results.
  /// Throws Stopped on Ctrl-C.
  void run(const std::function<void()>& on_batch = {});
  /// "sides": what a script for another framework writes in the same form; see
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
    std::map<Key, std::vector<Latency>> latencies;  ///< one a round
    std::map<Key, std::optional<int64_t>> operations;
    std::map<Key, double> joules;  ///< of an image
    std::map<int64_t, std::vector<LayerTiming>> layers;
    double relative_error = 0;
    double agreement = 1;
    std::optional<double> accuracy;
  };

  /// One for each backend: they are large.
  CacheSweep& sweep_of(Backend& backend);
  void check_logits();
  void measure_accuracy();
  void time_round(int64_t batch, int round);
  void time_forward(Measured& measured, Task task, int64_t batch);
  void time_each_layer(int64_t batch);
  nlohmann::json side_json(const Measured& measured) const;

  ComparisonOptions options_;
  const StateDict& floats_;
  ResampleTables tables_;
  std::vector<Measured> sides_;
  std::map<Backend*, std::unique_ptr<CacheSweep>> sweeps_;
};

}  // namespace nibblenet::tools
