#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "training/parallel/block_passes.h"
#include "training/parallel/tree_sum.h"

namespace nibblenet {

/// Passes by blocks on one device of any kind, one block after the other, in the precision of the
/// network. A layer's sums leave for the other ranks as soon as the backward pass of the last block
/// has come to it. Its step is then taken, and its weights come back, while the pass goes on with
/// the layers below: on the exchange, beside the backend's operations.
class DeviceBlocks final : public BlockPasses {
 public:
  /// As make_block_passes(). Requires: the backend trains.
  DeviceBlocks(Network& network, size_t first_trained, bool frozen, const Preprocess& preprocess,
               const BlockPlan& plan);

  BatchScore step(const BlockBatch& batch, const Loss& loss, const OnSums& on_sums) override;
  /// Ranks share out whole batches of plan.batch images.
  Evaluation evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress) override;
  Tensor<float> compute_features(const Dataset& dataset, const OnProgress& on_progress) override;
  /// Each rank evaluates all features, of which it has a copy.
  Evaluation evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
                               const StateDict* model, const OnProgress& on_progress) override;
  void attend(Network& teacher) override { teacher_ = &teacher; }
  std::vector<float> predictions_of_teacher(ConstActivations x) override;
  Tensor<float> predictions_of_teacher(const Dataset& dataset, const OnProgress& on_progress) override;
  size_t peak_bytes() const override { return 0; }  // all of it is the backend's

 private:
  /// A copy of some images of a batch, which always lies at the same place: which kernel computes
  /// depends on alignment.
  ConstActivations block_of(ConstActivations x, IndexRange rows);
  /// Brings a layer's sums to where its step is taken.
  void finish_layer(size_t layer, int64_t blocks, const OnSums& on_sums);
  void finish_layer_in_parts(size_t layer, int64_t blocks, const OnSums& on_sums);
  /// Queues messages that bring each rank's part of a layer's values to all others, in place.
  void gather_values(size_t layer, const StoredGradients& values);
  /// Waits for the exchange, then takes the steps that were put off.
  void finish_exchange(const OnSums& on_sums);
  Ranks* several() const { return plan_.ranks->size() > 1 ? plan_.ranks : nullptr; }
  /// The network, or `model` on its device.
  Network& evaluated(const StateDict* model, std::optional<Network>& room) const;

  std::optional<Pass> frozen_;
  std::optional<Pass> trained_;
  Network* teacher_ = nullptr;
  std::optional<Pass> teacher_pass_;
  Buffer<std::byte> input_;
  Tensor<float> losses_;                         ///< of this rank's images of a batch
  Tensor<float> dlogits_;                        ///< of a block
  std::vector<std::unique_ptr<TreeSum>> sums_;   ///< by layer, of whole gradients
  std::vector<std::unique_ptr<TreeSum>> parts_;  ///< by layer, of what this rank adds up, over all blocks
  struct Sum {
    size_t layer;
    TreeSum::Values values;
  };
  std::vector<Sum> whole_;  ///< of layers whose steps the backend takes once the exchange is done
  std::vector<Sum> spent_;  ///< of layers, in use until the exchange is done
  std::vector<Sum> spent_parts_;
};

}  // namespace nibblenet
