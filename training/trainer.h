#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers/network/evaluate.h"
#include "layers/network/pass.h"
#include "training/compression/pruning.h"
#include "training/loss_scale.h"
#include "training/moving_average.h"
#include "training/parallel/block_passes.h"
#include "training/recipe.h"
#include "training/schedule.h"
#include "training/targets.h"
#include "training/teacher.h"
#include "training/trained_parameters.h"

namespace nibblenet {

/// Everything a training run's result depends on, besides the data, the first parameters and the
/// thread count. Stored in checkpoints, so that a resumed run is the same run.
struct TrainingOptions {
  bool freeze_features = true;
  int64_t epochs = 10;
  int64_t batch_size = 128;
  double learning_rate = 0.01;
  double momentum = 0.9;
  double weight_decay = 0.0;
  double dropout = 0.5;
  Schedule schedule = Schedule::constant;
  bool flip = false;                         ///< mirror half of the images (LoaderOptions)
  bool shift = false;                        ///< likewise
  bool cut = false;                          ///< likewise
  Precision precision = Precision::float32;  ///< of activations; the network is made for it
  int image_size = 224;
  uint64_t seed = 0;
  int64_t train_limit = 0;  ///< 0: all images
  int64_t test_limit = 0;   ///< of the test images, and of the validation images
  bool validation = false;  ///< epochs are measured on validation images, and the best one's weights are the result
  int64_t patience = 0;     ///< with validation, ends after so many epochs without a better one; 0: never
  PruningOptions pruning;
  DistillationOptions distillation;
  Learned learned = Learned::everything;
  RecipeOptions recipe;
  int64_t blocks = 0;  ///< images of a block, which one thread computes (BlockPasses); 0: all threads share a batch
};

/// Whether an epoch sees other images than the one before, so that frozen features cannot be kept.
inline bool augments(const TrainingOptions& options) {
  return options.flip || options.shift || options.cut || options.recipe.mixing.enabled();
}

/// Throws UsageError for values that make no sense.
void validate(const TrainingOptions& options);
std::string to_json(const TrainingOptions& options);
/// Throws FormatError when the text is not what to_json writes.
TrainingOptions training_options_from_json(const std::string& text);

/// What else a run's bits depend on: a resumed run that differs in it is another run.
struct TrainingSource {
  std::string data;         ///< path of the images, as it was given or found
  std::string fingerprint;  ///< of all splits' pixels and labels; empty: the checkpoint is of 0.1 and does not say
  std::string device;       ///< the backend's name
  int64_t threads = 0;      ///< of the CPU
};

/// What an epoch's weights are worth on images that it did not train on.
struct EpochScore {
  double loss = 0;
  double accuracy = 0;
};

/// Results of one epoch.
struct EpochReport {
  int64_t epoch = 0;          ///< from 1
  double loss = 0;            ///< mean training loss, dropout on; with soft targets, the divergence from them
  double train_accuracy = 0;  ///< of mixed images, by the label with the larger share
  double test_loss = 0;       ///< without validation, as the next
  double test_accuracy = 0;
  std::optional<EpochScore> validation;  ///< in place of the test
  double seconds = 0;                    ///< of training, tests aside
  double images_per_second = 0;
  double sparsity = 0;  ///< fraction of the trained weights that is 0 after the epoch; measured when pruning

  EpochScore measured() const { return validation.value_or(EpochScore{test_loss, test_accuracy}); }
};

/// Position of a run. With the parameters and momenta it is all that resuming needs.
struct TrainingPosition {
  int64_t epoch = 0;    ///< complete epochs
  int64_t batch = 0;    ///< complete batches of the next one
  int64_t step = 0;     ///< all batches so far
  double loss_sum = 0;  ///< of the unfinished epoch
  int64_t correct = 0;
  int64_t images = 0;
  LossScale loss_scale;                ///< in float16
  std::vector<double> start_sparsity;  ///< of each trained layer, where pruning began
  std::vector<EpochReport> history;
  int64_t best = 0;     ///< with validation, the epoch of the best weights so far, from 1; 0: none counts yet
  bool tested = false;  ///< with validation, whether the best weights were tested at the run's end
};

/// Whether no epoch is left to train: all are done, or too many were no better than the best.
bool is_trained(const TrainingOptions& options, const TrainingPosition& position);

/// Contents of a checkpoint.
struct Checkpoint {
  StateDict parameters;  ///< in float32; of a weight that trains in packed form, the values before rounding
  StateDict packed;      ///< all parameters as model() gives them; empty for a run in float32
  StateDict masters;     ///< other values before rounding, by name
  StateDict momenta;     ///< under the names of their parameters
  StateDict average;     ///< the moving averages; empty without them
  StateDict best;        ///< model() of the best epoch; empty without one
  TrainingOptions options;
  TrainingPosition position;
  TrainingSource source;
};
/// Throws FormatError when the file is no checkpoint.
Checkpoint load_checkpoint(const std::filesystem::path& path);
/// Whether the run of a checkpoint has come to its end; reads no tensor. Throws FormatError.
bool is_of_finished_run(const std::filesystem::path& path);

/// Fine-tunes a network by SGD. Frozen features without augmentation are computed once and kept.
class Trainer {
 public:
  /// Trains `network` on `train`, and evaluates it after every epoch on `test`. With
  /// options.validation it evaluates it on `validation`, and tests once, at the end, with the best
  /// epoch's weights. These have the highest accuracy, among equals the lowest loss, then the first
  /// place. Epochs before the last pruning do not count. The data sets must outlive the trainer.
  Trainer(Network& network, const Dataset& train, const Dataset& test, const TrainingOptions& options,
          const Dataset* validation = nullptr);

  /// Functions that hear of a run's events.
  struct Callbacks {
    OnProgress on_features;  ///< while features are computed, in images
    /// After every step; true asks to stop behind it.
    std::function<bool(const TrainingPosition&, int64_t batches, double images_per_second)> on_step;
    std::function<bool()> save_due;  ///< after every step, behind on_step: whether to call `save` now
    std::function<void()> save;      ///< may save a checkpoint; with several ranks, called on all of them
    OnProgress on_test;              ///< while an epoch's evaluation or the test runs, in images
    std::function<void(const EpochReport&)> on_epoch;  ///< after every epoch and its evaluation
  };
  /// Trains from the current position to the end. False when a callback asked to stop: save a
  /// checkpoint then. One that was asked for in an evaluation goes on with that evaluation.
  bool run(const Callbacks& callbacks);

  const TrainingPosition& position() const { return position_; }
  /// The test of the best epoch's weights, once run() has come to its end; nothing without
  /// validation.
  const std::optional<Evaluation>& tested() const { return tested_; }

  /// Trains in packed form: see TrainedParameters::quantize(). Call it before anything else. Every
  /// epoch then tests the packed model.
  void quantize(StateDict packed);
  /// Learns this network's predictions too, by options.distillation. Call it before anything else.
  /// `teacher` must outlive the trainer.
  void learn_from(Network& teacher);
  /// Computes batches by blocks of options.blocks images, on so many threads, with other processes.
  /// `exchange` moves gradients between GPUs; null: there is one process, or it trains on the CPU.
  /// Call it before run(), with options.blocks alone. `ranks` and `exchange` must outlive
  /// run().
  void by_blocks(int threads, Ranks& ranks, Exchange* exchange = nullptr);
  /// Shares each batch with other processes, each of which computes its images on all its threads;
  /// gradients are added up in any order. Call it before run(), without options.blocks, and else as
  /// by_blocks().
  void by_shares(int threads, Ranks& ranks, Exchange* exchange = nullptr);
  /// Whether a rank gives true. Collective where there are several.
  bool any_rank(bool mine) { return plan_ ? plan_->ranks->any(mine) : mine; }
  /// The most memory that blocks took beside the backend's.
  size_t peak_bytes_of_blocks() const { return blocks_ ? blocks_->peak_bytes() : 0; }
  /// The network as it is to be saved: packed where it trains in packed form, with its moving
  /// averages where there are any, and with validation as it was after the best epoch so far.
  StateDict model() const { return best_.parameters.empty() ? current_model() : copy_of(best_); }
  /// Of the trained layers of model().
  std::vector<LayerSparsity> sparsity() const;

  /// What checkpoints say of where the run's images came from. Before the first checkpoint.
  void note_source(TrainingSource source) { source_ = std::move(source); }
  /// Brings what a checkpoint needs to the first rank. All ranks call it, before every
  /// save_checkpoint().
  void collect();
  /// The current network, momenta, averages, options, position, classes, source and the best
  /// network in one file; atomic.
  void save_checkpoint(const std::filesystem::path& path) const;
  /// Continues from a checkpoint. Requires: the network was made from its parameters, and
  /// quantize() got its packed ones.
  void restore(const Checkpoint& checkpoint);

 private:
  void prepare(const Callbacks& callbacks);
  /// One batch: forward, loss, backward, update. `x` are images or cached features in the backend's
  /// memory.
  void step(ConstActivations x, const BatchLabels& labels);
  /// step() of this rank's part of a batch of `images`.
  void step_by_blocks(ConstActivations x, const BatchLabels& labels, int64_t images);
  /// This step's rates.
  SgdParameters sgd() const;
  /// Writes the batch's losses and, in dlogits_, the gradient of their mean. Returns the part of
  /// each loss that no logits can avoid.
  double measure_loss(TensorView<const float> logits, const BatchLabels& labels);
  /// Computes gradients and takes a step. Skips the step if gradients in float16 are not finite.
  void update(TensorView<const float> dlogits);
  bool run_epoch(const Callbacks& callbacks, double& seconds);
  Tensor<float> features_of(const Dataset& dataset, const OnProgress& on_progress);
  int64_t images_of_batch() const;
  void expect_finite_loss() const;
  void expect_same_weights();
  void prune_when_due();
  StateDict current_model() const;
  Network saved_network(StateDict model) const;
  Evaluation measure(const OnProgress& on_progress);
  EpochReport report(const Evaluation& measured, double seconds, int64_t images) const;
  void keep_if_best();
  Evaluation test_best(const OnProgress& on_progress);
  void restore_best(const Checkpoint& checkpoint);

  Network& network_;
  const Dataset& train_;
  const Dataset& test_;
  const Dataset& measured_;  ///< what epochs are evaluated on: validation images, else test images
  TrainingOptions options_;
  Preprocess preprocess_;
  TrainingPosition position_;
  TrainingSource source_;
  int64_t batches_;  ///< in an epoch
  TrainedParameters parameters_;
  std::optional<MovingAverage> average_;

  std::vector<int32_t> train_labels_;
  std::vector<int32_t> measured_labels_;
  std::optional<Pass> frozen_;   ///< features, inference; when they are frozen
  std::optional<Pass> trained_;  ///< the rest, or everything
  std::optional<BlockPlan> plan_;
  std::unique_ptr<BlockPasses> blocks_;  ///< replaces both passes
  StateDict collected_;                  ///< momenta that other ranks keep parts of
  std::optional<Teacher> teacher_;
  std::optional<Targets> targets_;  ///< where labels alone are not what is learned
  Tensor<float> train_features_;
  Tensor<float> measured_features_;
  Tensor<float> gathered_;  ///< cached features of a batch
  Tensor<int32_t> labels_;
  Tensor<float> losses_;
  Tensor<float> dlogits_;
  StateDict best_;                    ///< model() after epoch position_.best
  std::optional<Evaluation> tested_;  ///< of it
};

}  // namespace nibblenet
