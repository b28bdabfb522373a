#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/ranks/ranks.h"
#include "layers/network/evaluate.h"
#include "layers/network/pass.h"
#include "training/parallel/tree_sum.h"
#include "training/parallel/workers.h"

namespace nibblenet {

/// What computes the blocks of every batch.
struct BlockPlan {
  int64_t block = 0;  ///< images of a block
  int threads = 1;    ///< of this process; each computes a block at a time
  Ranks* ranks = nullptr;
  /// Each rank's share of a batch is one block, of `block` images at most, which all its threads
  /// compute, and gradients are added up in any order.
  bool fast = false;
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
/// bits depend neither on threads nor on ranks, unless the plan is fast. On the CPU, in float32.
/// Each rank owns a part of each layer: numbers [begin, end) of its weights followed by its biases.
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
  /// gradient() then, of the parts that this rank owns.
  BatchScore step(const BlockBatch& batch, const Loss& loss);
  /// The sums of a layer, by its index in the network.
  StoredGradients gradient(size_t layer);
  /// What this rank owns of a layer; all of it where the plan is fast.
  IndexRange own_part(size_t layer) const { return part_of(layer, plan_.ranks->rank()); }
  /// Whether other ranks own something.
  bool shares_parts() const { return plan_.ranks->size() > 1 && !plan_.fast; }

  /// Something of the shapes of a layer's parameters, on the host.
  using OfLayer = std::function<StoredGradients(size_t layer)>;
  /// Brings each rank's parts to all others, in place.
  void gather_parts(const OfLayer& values);
  void gather_gradients();
  /// Brings each rank's parts, `own`, to `all` of the first rank.
  void collect_parts(const std::function<std::span<const float>(size_t layer)>& own, const OfLayer& all);
  /// Call it after every change of the network's parameters.
  void parameters_changed();

  /// As evaluate(), compute_features() and evaluate_features(), all ranks together. `model`, unless
  /// null, is evaluated in place of the network. Each rank gets the whole result. The progress of
  /// any rank may ask all to stop.
  Evaluation evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress);
  Tensor<float> compute_features(const Dataset& dataset, const OnProgress& on_progress);
  Evaluation evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
                               const StateDict* model, const OnProgress& on_progress);

  /// Computes with another network, too, whose predictions this one learns. It must outlive this.
  void attend(Network& teacher);
  /// The teacher's logits[images, classes] of prepared images, all of this rank's of a batch.
  std::vector<float> predictions_of_teacher(ConstActivations x);
  /// Those of a data set, all ranks together.
  Tensor<float> predictions_of_teacher(const Dataset& dataset, const OnProgress& on_progress);

  /// This rank's share of a batch.
  BlockShare share() const { return share_of(plan_.ranks->rank()); }
  Ranks& ranks() const { return *plan_.ranks; }
  /// The most bytes that the workers' backends and the gradients took.
  size_t peak_bytes() const;

 private:
  struct Worker;
  struct Place {  ///< of a layer's gradients in the sums, biases behind weights
    size_t begin = 0;
    size_t weights = 0;
    size_t length = 0;    ///< 0: it does not train
    size_t in_slice = 0;  ///< of this rank's part, in the sums of its parts
  };
  StoredGradients gradient_in(float* sums, size_t layer) const;
  BlockShare share_of(int rank) const { return {plan_.fast ? 1 : plan_.block, rank, plan_.ranks->size()}; }
  /// Calls work(worker, rows) for pieces of `own`, each of a block's size but the last.
  void each_block(IndexRange own, const std::function<void(int worker, IndexRange rows)>& work);
  IndexRange part_of(size_t layer, int rank) const;
  void add_up(int64_t blocks);
  void add_up_fast(bool has_own);
  BatchScore all_of(const BatchScore& own);
  /// Outputs of layers [0, end) for every image, in `outputs`[images, …], on every rank.
  void feed(PerWorker<Network>* models, size_t end, const Dataset& dataset, TensorView<float> outputs,
            const OnProgress& on_progress);
  std::unique_ptr<PerWorker<Network>> load(const StateDict* model);
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
  std::optional<TreeSum> slices_;  ///< of this rank's parts, over all blocks
  size_t slice_length_ = 0;
  TreeSum::Values total_;
  std::unique_ptr<PerWorker<Network>> teachers_;
  std::unique_ptr<PerWorker<Pass>> teacher_passes_;
};

}  // namespace nibblenet
