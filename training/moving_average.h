#pragma once

#include <vector>

#include "layers/network/network.h"

namespace nibblenet {

/// The exponential moving average of the parameters that training changes (Polyak and Juditsky
/// 1992; with this decay at the start: TensorFlow's ExponentialMovingAverage). It begins at the
/// first parameters.
class MovingAverage {
 public:
  /// Averages float parameters of the layers from `first` on. With `keep_zeros` a weight that is 0
  /// has the average 0.
  MovingAverage(Network& network, size_t first, double decay, bool keep_zeros);

  /// Share of the parameters behind step `number` (from 1) in the average: 1 - min(decay,
  /// (1 + number) / (10 + number)), so that short runs forget their start, too.
  static double share(double decay, int64_t number);
  /// Takes in the network's parameters behind step `number`: average += share (parameter -
  /// average).
  void update(int64_t number);

  /// `parameters`, a copy of the network's, with the averages in place of what is averaged.
  StateDict applied_to(StateDict parameters) const;
  /// Copies the averages to host memory, under the names of their parameters.
  StateDict save() const;
  /// Throws FormatError or ShapeError for averages that are missing, superfluous or do not fit.
  void restore(const StateDict& averages);

 private:
  struct Averaged {
    size_t layer = 0;
    Tensor<float> weight;
    Tensor<float> bias;
  };
  Network& network_;
  double decay_;
  bool keep_zeros_;
  std::vector<Averaged> averages_;
};

}  // namespace nibblenet
