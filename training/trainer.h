#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "training/evaluate.h"
#include "training/schedule.h"

namespace nibblenet {

/// Everything a training run's result depends on, besides the data, the first parameters and the thread count. Stored
/// in checkpoints, so that a resumed run is the same run.
struct TrainingOptions {
  bool freeze_features = true;
  int64_t epochs = 10;
  int64_t batch_size = 128;
  double learning_rate = 0.01;
  double momentum = 0.9;
  double weight_decay = 0.0;
  double dropout = 0.5;
  Schedule schedule = Schedule::constant;
  bool flip = false;
  int image_size = 224;
  uint64_t seed = 0;
  int64_t train_limit = 0;  ///< 0: all images
  int64_t test_limit = 0;
};

/// Throws UsageError for values that make no sense.
void validate(const TrainingOptions& options);
std::string to_json(const TrainingOptions& options);
/// Throws FormatError when the text is not what to_json writes.
TrainingOptions training_options_from_json(const std::string& text);

/// What happened in one epoch.
struct EpochReport {
  int64_t epoch = 0;  ///< from 1
  double loss = 0;    ///< mean training loss, dropout on
  double train_accuracy = 0;
  double test_loss = 0;
  double test_accuracy = 0;
  double seconds = 0;  ///< of training, without the test
  double images_per_second = 0;
};

/// Where a run stands; with the parameters and momenta, all there is to resume from.
struct TrainingPosition {
  int64_t epoch = 0;    ///< complete epochs
  int64_t batch = 0;    ///< complete batches of the next one
  int64_t step = 0;     ///< all batches so far
  double loss_sum = 0;  ///< of the unfinished epoch
  int64_t correct = 0;
  int64_t images = 0;
  std::vector<EpochReport> history;
};

/// Fine-tunes a network by SGD. Frozen features without augmentation are computed once and kept.
class Trainer {
 public:
  Trainer(Network& network, const Dataset& train, const Dataset& test, const TrainingOptions& options);

  struct Callbacks {
    OnProgress on_features;  ///< while features are computed, in images
    /// After every step; true asks to stop behind it.
    std::function<bool(const TrainingPosition&, int64_t batches, double images_per_second)> on_step;
    std::function<void(const EpochReport&)> on_epoch;  ///< after every epoch and its test
  };
  /// Trains from the current position to the last epoch. False when on_step asked to stop: save a checkpoint then.
  bool run(const Callbacks& callbacks);

  const TrainingPosition& position() const { return position_; }

  /// Parameters, momenta, options and position in one file; atomic.
  void save_checkpoint(const std::filesystem::path& path) const;
  /// Continues from a checkpoint whose parameters the network was made from.
  void restore(const StateDict& momenta, TrainingPosition position);

 private:
  void prepare(const Callbacks& callbacks);
  /// One batch: forward, loss, backward, update. `x` are images or cached features in the backend's memory.
  void step(TensorView<const float> x, std::span<const int32_t> labels);
  bool run_epoch(const Callbacks& callbacks, double& seconds);
  Evaluation test();

  Network& network_;
  const Dataset& train_;
  const Dataset& test_;
  TrainingOptions options_;
  Preprocess preprocess_;
  TrainingPosition position_;
  int64_t batches_;  ///< in an epoch

  struct Momentum {
    Tensor<float> weight;
    Tensor<float> bias;
  };
  std::vector<Momentum> momenta_;  ///< by layer; empty where nothing is trained
  std::vector<int32_t> train_labels_;
  std::vector<int32_t> test_labels_;
  std::optional<Pass> frozen_;   ///< features, inference; when they are frozen
  std::optional<Pass> trained_;  ///< the rest, or everything
  Tensor<float> train_features_;
  Tensor<float> test_features_;
  Tensor<float> gathered_;  ///< cached features of a batch
  Tensor<int32_t> labels_;
  Tensor<float> losses_;
  Tensor<float> dlogits_;
};

/// A checkpoint, taken apart.
struct Checkpoint {
  StateDict parameters;
  StateDict momenta;  ///< under the names of the parameters
  TrainingOptions options;
  TrainingPosition position;
};
/// Makes a plain model of what was read from a checkpoint; false when it was none.
bool drop_momenta(StateDict& dict);
/// Throws FormatError when the file is no checkpoint.
Checkpoint load_checkpoint(const std::filesystem::path& path);

}  // namespace nibblenet
