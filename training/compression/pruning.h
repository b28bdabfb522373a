#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace nibblenet {

/// Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878): on a cubic ramp, the smallest
/// weights become 0 and stay 0.
struct PruningOptions {
  bool enabled = false;
  double fraction = 0;                   ///< of the weights to be 0, of each layer, or of all of them together
  bool global = false;                   ///< one threshold for all layers that `layers` does not name
  double until = 0.6;                    ///< part of the training at which the ramp ends
  std::map<std::string, double> layers;  ///< fractions of layers that differ
};

/// Fraction on the ramp: `from` at its start, `to` at its end, never below `from`.
double ramped_fraction(double from, double to, double progress);

/// Steps before which weights are pruned: about 60 of them, the last one at the end of the ramp.
class PruningSchedule {
 public:
  /// Reaches its fraction at `until` of `steps`.
  PruningSchedule(double until, int64_t steps);
  bool due(int64_t step) const { return step <= last_ && (step % interval_ == 0 || step == last_); }
  /// In [0, 1].
  double progress(int64_t step) const;
  /// Whether the last pruning lies behind, `step` being the next one.
  bool over(int64_t step) const { return step > last_; }

 private:
  int64_t last_;
  int64_t interval_;
};

/// Counts weights that are exactly 0.
int64_t count_zeros(std::span<const float> weights);

/// Sets the smallest weights of all layers together to 0, so that `fraction` of them is 0. Of equal
/// magnitudes the first ones go.
void prune_smallest(std::span<const std::span<float>> layers, double fraction);

}  // namespace nibblenet
