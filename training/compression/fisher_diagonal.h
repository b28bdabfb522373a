#pragma once

#include <map>
#include <string>
#include <vector>

#include "layers/network/pass.h"

namespace nibblenet {

/// How much the predictions care about each output of the linear layers: E[(dL/dy_k)^2], y being
/// what the layer gives before its ReLU and L the cross-entropy of a label that is drawn from the
/// network's own predictions: the diagonal of the Fisher information (Martens 2014, arXiv
/// 1412.1193, section 5), which is the curvature of the Kullback-Leibler divergence from these
/// predictions. No true label is looked at.
///
/// A batch gives the gradients of its biases, sums over images. With the loss of every image times
/// a random sign, the mean square of such a sum is the sum of the squares (Hutchinson's estimate).
class FisherDiagonal {
 public:
  /// `batch_size` bounds the batches of add(). The network stays as it is, its weights are float.
  FisherDiagonal(Network& network, int64_t batch_size, uint64_t seed);

  /// Index of the layer whose inputs add() takes: the first linear one.
  size_t begin() const { return begin_; }
  /// x[N, D], what that layer is given for N images, in the backend's memory; `first` is the number
  /// of the first image.
  void add(TensorView<const float> x, int64_t first);
  /// By weight: one number for each output, a mean over the images.
  std::map<std::string, std::vector<float>> finish() const;

 private:
  Network& network_;
  size_t begin_;
  uint64_t seed_;
  Pass pass_;
  Tensor<float> dlogits_;
  std::map<std::string, std::vector<double>> squares_;  ///< by weight, summed over batches
  int64_t images_ = 0;
};

}  // namespace nibblenet
