#pragma once

#include <span>
#include <vector>

#include "kernels/backend.h"
#include "training/teacher.h"

namespace nibblenet {

/// The labels of a batch, of images that may be mixed with others.
struct BatchLabels {
  std::vector<int32_t> own;       ///< N
  std::vector<int32_t> partners;  ///< N, or empty where images are not mixed
  std::vector<double> shares;     ///< N, of `own` in the mix, or empty

  void clear();  ///< keeps the memory
  bool mixed() const { return !partners.empty(); }
  /// The label with the larger share in image n.
  int32_t dominant(size_t n) const { return mixed() && shares[n] < 0.5 ? partners[n] : own[n]; }
  /// The dominant label of every image.
  std::vector<int32_t> dominant() const;
};

/// Builds the distributions that a batch's logits are trained towards: labels, mixed as the images
/// are, smoothed, then mixed with a teacher's predictions.
class Targets {
 public:
  /// For batches of up to `batch_size` images. `smoothing` is in [0, 1).
  Targets(Backend& backend, int64_t batch_size, int64_t classes, double smoothing);

  /// weight p + (1 - weight) ((1 - smoothing) (share onehot(own) + (1 - share) onehot(partner)) +
  /// smoothing / classes), where p are the predictions of `teacher` for the images that it looked
  /// at last, and `weight` is the teacher's; 0 without one. The label that images were not mixed
  /// with has the share 0. Throws FormatError for predictions that are not finite.
  SoftTargets of(const BatchLabels& labels, const Teacher* teacher);

 private:
  Backend& backend_;
  int64_t classes_;
  double smoothing_;
  std::vector<double> targets_;  ///< [N, classes]
  std::vector<float> rounded_;
  std::vector<double> entropies_;
  Tensor<float> on_device_;
};

}  // namespace nibblenet
