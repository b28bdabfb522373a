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
  std::string key;          ///< of its weights in a file that holds several models, else empty
};

/// Targets for the softmax of a batch's logits.
struct SoftTargets {
  TensorView<const float> distributions;  ///< [N, classes] in the backend's memory, valid until the next ones
  double entropy = 0;                     ///< mean over the rows: the least cross-entropy that is possible
  std::span<const double> entropies;      ///< N, of each row; valid as long
};

/// A network whose predictions another one learns. Call look_at() with a batch, then mix_into().
class Teacher {
 public:
  /// Distils from `network` with this weight.
  Teacher(Network& network, double weight, const Preprocess& preprocess, int64_t batch_size);

  /// Predicts all images of a data set once, so that look_at() can take their positions.
  void predict(const Dataset& dataset, const OnProgress& on_progress);
  void look_at(ConstActivations images);
  void look_at(std::span<const int64_t> positions);
  /// In place of predict() and look_at(images), logits[images, classes] that were computed by
  /// blocks (BlockPasses).
  bool has_predicted() const { return !predicted_.empty(); }
  void take_predictions(Tensor<float> logits) { predicted_ = std::move(logits); }
  void take_logits(std::vector<float> logits) { logits_ = std::move(logits); }
  Network& network() { return network_; }
  /// targets[N, classes] = weight softmax(logits) + (1 - weight) targets, for the batch of the last
  /// look_at(). Throws FormatError for logits that are not finite.
  void mix_into(std::span<double> targets) const;

 private:
  Network& network_;
  double weight_;
  Preprocess preprocess_;
  int64_t batch_size_;
  std::optional<Pass> pass_;
  Tensor<float> predicted_;    ///< [images, classes] on the host
  std::vector<float> logits_;  ///< of the batch
};

}  // namespace nibblenet
