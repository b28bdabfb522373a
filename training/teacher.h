#pragma once

#include <optional>
#include <string>
#include <vector>

#include "layers/network/evaluate.h"
#include "layers/network/pass.h"

namespace nibblenet {

/// Knowledge distillation (Hinton 2015, arXiv 1503.02531, at temperature 1): the network learns
/// another one's distribution over the classes beside the labels.
struct DistillationOptions {
  double weight = 0;        ///< of the teacher's distribution; the label has the rest. 0: there is no teacher
  std::string teacher;      ///< its file
  std::string fingerprint;  ///< of its parameters
};

/// What the logits of a batch should be.
struct SoftTargets {
  TensorView<const float> distributions;  ///< [N, classes] in the backend's memory, valid until the next ones
  double entropy = 0;                     ///< mean of the rows: the cross-entropy that is left when they are met
};

/// A network whose predictions another one learns. First look_at() a batch, then ask for its
/// targets().
class Teacher {
 public:
  /// Distils from `network` with this weight.
  Teacher(Network& network, double weight, const Preprocess& preprocess, int64_t batch_size);

  /// Predicts all images of a data set, for look_at() by their position.
  void predict(const Dataset& dataset, const OnProgress& on_progress);
  void look_at(ConstActivations images);
  void look_at(std::span<const int64_t> positions);
  /// weight softmax(logits) + (1 - weight) onehot(label), of the batch that was looked at.
  SoftTargets targets(std::span<const int32_t> labels);

 private:
  Network& network_;
  double weight_;
  Preprocess preprocess_;
  int64_t batch_size_;
  std::optional<Pass> pass_;
  Tensor<float> predicted_;    ///< [images, classes] on the host
  std::vector<float> logits_;  ///< of the batch
  Tensor<float> targets_;
};

}  // namespace nibblenet
