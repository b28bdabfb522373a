#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "layers/network/network_spec.h"

namespace nibblenet {

/// A layer with its parameters resident in a backend.
struct Layer {
  LayerSpec spec;
  std::unique_ptr<Weight> weight;        ///< null without parameters
  Tensor<float> bias;                    ///< [K]
  std::unique_ptr<FoldedConv2d> folded;  ///< in place of both, where the layer is folded with its images' preparation
  SizeRow size;                          ///< its row in the ledger; meaningful with parameters
};

/// A copy in host memory of values that lie in a backend's.
Parameter read_back(BackendMemory& backend, std::string name, TensorView<const float> values);

/// A network whose parameters live in a backend's memory.
class Network {
 public:
  /// Takes the parameters over and frees the host's copy of each as soon as it is resident. `precision` is what
  /// inference stores activations as, and weights that are not packed; training and saving need float32. With `fold`
  /// the first convolution is folded with the preparation of images that these tables describe (engine/core/fold.h):
  /// the network is then for inference from their bytes. Throws UsageError where that saves nothing.
  Network(Backend& backend, StateDict parameters, Precision precision = Precision::float32,
          const ResampleTables* fold = nullptr)
      : Network(backend, std::move(parameters), precision, fold, false) {}
  /// A network to train: with float16, activations are halves and weights are float32 with copies in halves
  /// (Training::make_trained_weight). Throws UsageError where the backend trains in float32 only.
  static Network for_training(Backend& backend, StateDict parameters, Precision precision) {
    return {backend, std::move(parameters), precision, nullptr, true};
  }

  Backend& backend() const { return *backend_; }
  Precision precision() const { return precision_; }
  const NetworkSpec& spec() const { return *spec_; }
  bool trains() const { return (precision_ == Precision::float32 || for_training_) && !folded(); }
  bool folded() const { return layers_.front().folded != nullptr; }
  std::vector<Layer>& layers() { return layers_; }
  const std::vector<Layer>& layers() const { return layers_; }
  int64_t classes() const { return layers_.back().spec.weight[0]; }
  /// Index of the first layer behind the flatten: [0, this) are the features, the rest the classifier.
  size_t classifier_begin() const { return classifier_begin_; }
  /// Length of a feature vector: what the flatten gives for one image.
  int64_t feature_count() const { return feature_count_; }

  /// One row for every layer with parameters. The sums equal the backend's meter to the byte.
  std::vector<SizeRow> ledger() const;
  /// The file this came from, 0 for a network that was made here: `header_bytes` belongs to no layer.
  int64_t file_bytes() const { return file_bytes_; }
  int64_t header_bytes() const { return header_bytes_; }

  /// A copy of the parameters in host memory. Throws Error when they are packed, folded or float16.
  StateDict state() const;

 private:
  Network(Backend& backend, StateDict parameters, Precision precision, const ResampleTables* fold, bool for_training);

  Backend* backend_;
  const NetworkSpec* spec_;
  Precision precision_;
  bool for_training_;
  std::vector<Layer> layers_;
  size_t classifier_begin_ = 0;
  int64_t feature_count_ = 0;
  int64_t file_bytes_ = 0;
  int64_t header_bytes_ = 0;
};

}  // namespace nibblenet
