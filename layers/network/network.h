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
  std::unique_ptr<FoldedConv2d> folded;  ///< replaces weight and bias if folded with the images' preparation
  SizeRow size;                          ///< its row in the ledger; only with parameters
};

/// Whether a first convolution that cannot be folded (engine/core/fold.h) is an error, or stays as
/// it is: the backend folds none, or folding saves nothing.
enum class Folding : uint8_t { required, where_it_saves };

/// Copies values from a backend's memory to a parameter on the host.
Parameter read_back(BackendMemory& backend, std::string name, TensorView<const float> values);

/// A network whose parameters live in a backend's memory.
class Network {
 public:
  /// A network for inference, or in float32 for training too. Takes over the parameters, and frees
  /// the host's copy of each once it is resident. In int8, a layer whose weights cannot be
  /// multiplied as bytes takes another precision, as its route says; state() needs float32. `fold`,
  /// unless null, holds tables of the image preparation that is folded into the first convolution
  /// (engine/core/fold.h): a folded() network infers from image bytes. Throws UsageError if folding
  /// is required, and the backend folds nothing or there is nothing to save.
  Network(Backend& backend, StateDict parameters, Precision precision = Precision::float32,
          const ResampleTables* fold = nullptr, Folding folding = Folding::required)
      : Network(backend, std::move(parameters), precision, fold, folding, false) {}
  /// A network to train. With float16, activations are fp16, and weights are float32 with fp16
  /// copies (Training::make_trained_weight). Throws UsageError if the backend trains in float32
  /// only.
  static Network for_training(Backend& backend, StateDict parameters, Precision precision) {
    return {backend, std::move(parameters), precision, nullptr, Folding::required, true};
  }

  Backend& backend() const { return *backend_; }
  Precision precision() const { return precision_; }
  /// The precision in which activations are stored between layers.
  Precision storage() const { return storage_of(precision_); }
  const NetworkSpec& spec() const { return *spec_; }
  bool trains() const { return (precision_ == Precision::float32 || for_training_) && !folded(); }
  bool folded() const { return layers_.front().folded != nullptr; }
  std::vector<Layer>& layers() { return layers_; }
  const std::vector<Layer>& layers() const { return layers_; }
  int64_t classes() const { return layers_.back().spec.weight[0]; }
  /// Index of the first layer behind the flatten: [0, this) are the features, the rest the
  /// classifier.
  size_t classifier_begin() const { return classifier_begin_; }
  /// Length of a feature vector: the flatten's output for one image.
  int64_t feature_count() const { return feature_count_; }

  /// One row for every layer with parameters. The sums equal the backend's meter to the byte.
  std::vector<SizeRow> ledger() const;
  /// Bytes of the network's file, and of its part that belongs to no layer; 0 without a file.
  int64_t file_bytes() const { return file_bytes_; }
  int64_t header_bytes() const { return header_bytes_; }

 private:
  Network(Backend& backend, StateDict parameters, Precision precision, const ResampleTables* fold, Folding folding,
          bool for_training);

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
