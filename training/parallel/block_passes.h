#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/io/block_share.h"
#include "engine/ranks/ranks.h"
#include "kernels/exchange.h"
#include "layers/network/evaluate.h"
#include "layers/network/pass.h"

namespace nibblenet {

/// What computes the blocks of every batch.
struct BlockPlan {
  int64_t block = 0;  ///< images of a block
  int64_t batch = 0;  ///< images of the largest batch
  int threads = 1;    ///< of this process; on the CPU each computes a block at a time
  Ranks* ranks = nullptr;
  Exchange* exchange = nullptr;  ///< of the ranks' devices; null: there is one process, or the CPU computes
  /// Whether steps can be taken on parts of layers (TrainedParameters::separable()).
  bool separable = true;
  /// Each rank's share of a batch is one block, of `block` images at most, which on the CPU all its
  /// threads compute, and gradients are added up in any order.
  bool fast = false;
};

/// The images of one training step that are this rank's.
struct BlockBatch {
  ConstActivations x;                   ///< prepared images, or features, of this rank's blocks
  std::span<const int32_t> labels;      ///< theirs
  std::span<const double> unavoidable;  ///< theirs: the part of each loss that no logits can avoid; empty: none
  int64_t images = 0;                   ///< of the whole batch, all ranks together
  DropoutPlan dropout;
  float loss_scale = 1.0F;  ///< as Pass::backward() takes it
};

/// What all ranks measured on a batch, in the batch's order.
struct BatchScore {
  std::vector<float> losses;
  int64_t correct = 0;
  bool finite = true;  ///< no gradient in float16 left the range on any rank: the step was taken
};

/// Passes of a network, block by block. A block is a fixed number of images of a batch. Its forward
/// and backward passes have the same shapes wherever they run, and one thread, or one GPU, computes
/// them. Gradients are summed in a tree that only the number of blocks shapes. So the bits depend
/// neither on threads nor on ranks, unless the plan is fast. Each rank owns a part of each layer:
/// numbers [begin, end) of its weights followed by its biases.
class BlockPasses {
 public:
  virtual ~BlockPasses() = default;
  BlockPasses(const BlockPasses&) = delete;
  BlockPasses& operator=(const BlockPasses&) = delete;

  /// Writes losses[n] and dlogits[n, classes] of some of this rank's images of a batch, `rows`. On
  /// the CPU it is called by several threads at once, with a backend for each.
  using Loss = std::function<void(Backend& backend, TensorView<float> losses, TensorView<float> dlogits,
                                  TensorView<const float> logits, IndexRange rows)>;
  /// Takes a step on a layer, by its index in the network, from the sums of its gradients over all
  /// blocks: on this rank's part where ranks share parts, else on all of it. `sums` may change, and
  /// `by` computes in their memory.
  using OnSums = std::function<void(size_t layer, std::span<float> sums, ParameterSteps& by)>;
  /// Forward and backward passes of a batch, then on_sums for every layer that trains, the last one
  /// first. Where a gradient in float16 is not finite on any rank, no rank calls on_sums. Where
  /// ranks share parts, each has all changed weights and biases then. Call parameters_changed()
  /// next.
  virtual BatchScore step(const BlockBatch& batch, const Loss& loss, const OnSums& on_sums) = 0;
  /// Call it after every change of the network's parameters and of Weight::changed().
  virtual void parameters_changed() {}

  /// As evaluate(), compute_features() and evaluate_features(), all ranks together. `model`, unless
  /// null, is evaluated in place of the network. Each rank gets the whole result. The progress of
  /// any rank may ask all to stop.
  virtual Evaluation evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress) = 0;
  virtual Tensor<float> compute_features(const Dataset& dataset, const OnProgress& on_progress) = 0;
  virtual Evaluation evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
                                       const StateDict* model, const OnProgress& on_progress) = 0;

  /// Computes with another network, too, whose predictions this one learns. It must outlive this.
  virtual void attend(Network& teacher) = 0;
  /// The teacher's logits[images, classes] of prepared images, all of this rank's of a batch.
  virtual std::vector<float> predictions_of_teacher(ConstActivations x) = 0;
  /// Those of a data set, all ranks together.
  virtual Tensor<float> predictions_of_teacher(const Dataset& dataset, const OnProgress& on_progress) = 0;
  /// The most bytes that this took beside the network's backend.
  virtual size_t peak_bytes() const = 0;

  /// Whether each rank takes the steps of the parts that it owns, and no other.
  bool shares_parts() const { return in_parts() && plan_.separable; }
  /// What this rank owns of a layer; all of it where ranks share no parts.
  IndexRange own_part(size_t layer) const {
    return shares_parts() ? part_of(layer, plan_.ranks->rank()) : IndexRange{0, length_of(layer)};
  }
  /// Brings each rank's parts, `own` on the host, to `all` of the first rank: something of the
  /// shapes of a layer's parameters, on the host.
  void collect_parts(const std::function<std::vector<float>(size_t layer)>& own,
                     const std::function<StoredGradients(size_t layer)>& all);
  /// This rank's share of a batch.
  BlockShare share() const { return {plan_.fast ? 1 : plan_.block, plan_.ranks->rank(), plan_.ranks->size()}; }
  Ranks& ranks() const { return *plan_.ranks; }

 protected:
  /// Layers from `first_trained` on train.
  BlockPasses(Network& network, size_t first_trained, const Preprocess& preprocess, const BlockPlan& plan);

  /// Weights and biases of a layer; 0: it does not train.
  int64_t length_of(size_t layer) const { return lengths_[layer]; }
  size_t layers() const { return lengths_.size(); }
  /// Whether each rank adds up the parts that it owns.
  bool in_parts() const { return !plan_.fast && (plan_.ranks->size() > 1 || plan_.exchange != nullptr); }
  /// What a rank adds up of a layer.
  IndexRange part_of(size_t layer, int rank) const {
    return in_parts() ? part_of_range(length_of(layer), rank, plan_.ranks->size()) : IndexRange{0, length_of(layer)};
  }
  /// The layer's weights and biases in a vector of both.
  StoredGradients gradients_in(float* sums, size_t layer) const;
  /// Numbers `part` of a layer's weights followed by its biases, without empty spans.
  static std::vector<std::span<float>> pieces_of(const StoredGradients& layer, IndexRange part);
  /// Counts how many of these images' logits[images, classes] are largest at their label.
  static int64_t count_correct(std::span<const float> logits, std::span<const int32_t> labels);
  /// Joins the scores of all ranks. Their images follow each other in the batch.
  BatchScore all_of(const BatchScore& own) const;
  bool asked_to_stop(const OnProgress& on_progress, int64_t done, int64_t total) const;

  Network& network_;
  Preprocess preprocess_;
  BlockPlan plan_;
  size_t first_trained_;

 private:
  std::vector<int64_t> lengths_;  ///< by layer
};

/// Passes on the network's device: the CPU, in float32, or a GPU. With `frozen`, the layers before
/// `first_trained` run in front of those that train; otherwise x is their output. Throws UsageError
/// for a device whose bits differ from run to run. Requires: the network's weights stay where they
/// are in memory.
std::unique_ptr<BlockPasses> make_block_passes(Network& network, size_t first_trained, bool frozen,
                                               const Preprocess& preprocess, const BlockPlan& plan);

}  // namespace nibblenet
