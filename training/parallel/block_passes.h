#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "layers/network/evaluate.h"
#include "layers/network/pass.h"
#include "training/parallel/ranks.h"
#include "training/parallel/tree_sum.h"
#include "training/parallel/workers.h"

namespace nibblenet {

/// What computes the blocks of every batch.
struct BlockPlan {
  int64_t block = 0;  ///< images of a block
  int threads = 1;    ///< of this process; each computes a block at a time
  Ranks* ranks = nullptr;
};

/// The images of one training step that are this rank's.
struct BlockBatch {
  ConstActivations x;               ///< prepared images, or features, of this rank's blocks
  std::span<const int32_t> labels;  ///< theirs
  int64_t images = 0;               ///< of the whole batch, all ranks together
  DropoutPlan dropout;
};

/// What all ranks measured on a batch, in the batch's order.
struct BatchScore {
  std::vector<float> losses;
  int64_t correct = 0;
};

/// Passes of a network, block by block. A block is a fixed number of images of a batch. Its forward
/// and backward passes have the same shapes wherever they run, and one thread computes them; blocks
/// run side by side. Gradients are summed in a tree that only the number of blocks shapes. So the
/// bits depend neither on threads nor on ranks. On the CPU, in float32.
class BlockPasses {
 public:
  /// Layers from `first_trained` on train. With `frozen`, the layers before these run in front of
  /// them; otherwise x is their output. Throws UsageError for another device than the CPU.
  /// Requires: the network's weights stay where they are in memory.
  BlockPasses(Network& network, size_t first_trained, bool frozen, const Preprocess& preprocess, const BlockPlan& plan);
  ~BlockPasses();

  /// Writes losses[n] and dlogits[n, classes] of some of this rank's images of a batch, `rows`.
  /// Called by several threads at once, with a backend for each.
  using Loss = std::function<void(Backend& backend, TensorView<float> losses, TensorView<float> dlogits,
                                  TensorView<const float> logits, IndexRange rows)>;
  /// Forward and backward passes of a batch. The sums of the gradients over all blocks are in
  /// gradient() then, on every rank.
  BatchScore step(const BlockBatch& batch, const Loss& loss);
  /// The sums of a layer, by its index in the network.
  StoredGradients gradient(size_t layer);
  /// Call it after every change of the network's parameters.
  void parameters_changed();

  /// As evaluate(), compute_features() and evaluate_features(), all ranks together. `model`, unless
  /// null, is evaluated in place of the network. Each rank gets the whole result. The progress of
  /// any rank may ask all to stop.
  Evaluation evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress);
  Tensor<float> compute_features(const Dataset& dataset, const OnProgress& on_progress);
  Evaluation evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
                               const StateDict* model, const OnProgress& on_progress);

  BlockShare share() const { return {plan_.block, plan_.ranks->rank(), plan_.ranks->size()}; }
  Ranks& ranks() const { return *plan_.ranks; }
  /// The most bytes that the workers' backends and the gradients took.
  size_t peak_bytes() const;

 private:
  struct Worker;
  struct Place {  ///< of a layer's gradients in the sums
    size_t weight = 0;
    size_t bias = 0;
  };
  StoredGradients gradient_in(float* sums, size_t layer) const;
  void add_up(int64_t blocks);
  BatchScore all_of(const BatchScore& own);
  /// Outputs of layers [0, end) for every image, in `outputs`[images, …], on every rank.
  void feed(PerWorker<Network>* models, size_t end, const Dataset& dataset, TensorView<float> outputs,
            const OnProgress& on_progress);
  std::unique_ptr<PerWorker<Network>> load(const StateDict* model);
  void gather_rows(TensorView<float> rows, int64_t batch);
  Evaluation scored(Tensor<float> logits, std::vector<int32_t> labels);
  bool asked_to_stop(const OnProgress& on_progress, int64_t done, int64_t total);

  Network& network_;
  Preprocess preprocess_;
  BlockPlan plan_;
  int64_t blocks_at_once_ = 1;  ///< of all ranks, at least
  size_t first_trained_;
  std::vector<Place> places_;  ///< by layer; of those that train
  size_t length_ = 0;          ///< floats of all gradients
  Workers workers_;
  std::unique_ptr<PerWorker<Worker>> passes_;
  std::optional<TreeSum> sums_;    ///< of whole gradients
  std::optional<TreeSum> slices_;  ///< of this rank's slice, over all blocks
  TreeSum::Values total_;
};

}  // namespace nibblenet
