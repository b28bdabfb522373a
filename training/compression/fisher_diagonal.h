#pragma once

#include <map>
#include <string>
#include <vector>

#include "layers/network/pass.h"

namespace nibblenet {

/// Diagonal of the Fisher information of the linear layers' outputs (Martens 2014, arXiv 1412.1193,
/// section 5): E[(dL/dy_k)^2]. y is a layer's output before its ReLU. L is the cross-entropy of a
/// label drawn from the network's own predictions; true labels are not used. The diagonal is the
/// curvature of the Kullback-Leibler divergence from these predictions.
///
/// The gradient of a bias is a sum over the images of a batch. Each image's loss gets a random
/// sign, so that the expected square of the sum is the sum of the squares (Hutchinson's estimate).
class FisherDiagonal {
 public:
  /// `batch_size` bounds the batches of add(). The network stays as it is, its weights are float.
  FisherDiagonal(Network& network, int64_t batch_size, uint64_t seed);

  /// Index of the layer whose inputs add() takes: the first linear one.
  size_t begin() const { return begin_; }
  /// Adds N images by x[N, D], that layer's inputs, in the backend's memory. `first` is the number
  /// of the first image.
  void add(TensorView<const float> x, int64_t first) { add(gradients_of(x, first), x.size(0)); }
  /// add() in two parts, of which another process may take the first: the gradients of all biases,
  /// in the order of the layers' names, and their sum.
  std::vector<float> gradients_of(TensorView<const float> x, int64_t first);
  void add(const std::vector<float>& gradients, int64_t images);
  /// Returns, by weight, one number for each output: a mean over the images.
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
