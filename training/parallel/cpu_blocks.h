#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "training/parallel/block_passes.h"
#include "training/parallel/tree_sum.h"
#include "training/parallel/workers.h"

namespace nibblenet {

/// Passes by blocks on the CPU, in float32: one thread computes a block, and blocks run side by
/// side. Ranks exchange their sums once the whole batch is computed.
class CpuBlocks final : public BlockPasses {
 public:
  /// As make_block_passes(). Throws Error for another device than the CPU.
  CpuBlocks(Network& network, size_t first_trained, bool frozen, const Preprocess& preprocess, const BlockPlan& plan);
  ~CpuBlocks() override;

  BatchScore step(const BlockBatch& batch, const Loss& loss, const OnSums& on_sums) override;
  void parameters_changed() override;
  Evaluation evaluate(const Dataset& dataset, const StateDict* model, const OnProgress& on_progress) override;
  Tensor<float> compute_features(const Dataset& dataset, const OnProgress& on_progress) override;
  Evaluation evaluate_features(TensorView<const float> features, std::span<const int32_t> labels,
                               const StateDict* model, const OnProgress& on_progress) override;
  void attend(Network& teacher) override;
  std::vector<float> predictions_of_teacher(ConstActivations x) override;
  Tensor<float> predictions_of_teacher(const Dataset& dataset, const OnProgress& on_progress) override;
  size_t peak_bytes() const override;

 private:
  struct Worker;
  /// Calls work(worker, rows) for pieces of `own`, each of a block's size but the last.
  void each_block(IndexRange own, const std::function<void(int worker, IndexRange rows)>& work);
  void add_up(int64_t blocks);
  void add_up_fast(bool has_own);
  /// Something of the shapes of a layer's parameters, on the host.
  using OfLayer = std::function<StoredGradients(size_t layer)>;
  /// Brings each rank's parts to all others, in place.
  void gather_parts(const OfLayer& values);
  /// Outputs of layers [0, end) for every image, in `outputs`[images, …], on every rank.
  void feed(PerWorker<Network>* models, size_t end, const Dataset& dataset, TensorView<float> outputs,
            const OnProgress& on_progress);
  std::unique_ptr<PerWorker<Network>> load(const StateDict* model);
  Evaluation scored(Tensor<float> logits, std::vector<int32_t> labels);

  int64_t blocks_at_once_ = 1;    ///< of all ranks, at least
  std::vector<size_t> places_;    ///< by layer, of its gradients in the sums of all
  std::vector<size_t> in_slice_;  ///< by layer, of this rank's part in the sums of its parts
  size_t length_ = 0;             ///< floats of all gradients
  size_t slice_length_ = 0;
  Workers workers_;
  std::unique_ptr<PerWorker<Worker>> passes_;
  std::optional<TreeSum> sums_;    ///< of whole gradients
  std::optional<TreeSum> slices_;  ///< of this rank's parts, over all blocks
  TreeSum::Values total_;
  std::unique_ptr<PerWorker<Network>> teachers_;
  std::unique_ptr<PerWorker<Pass>> teacher_passes_;
};

}  // namespace nibblenet
