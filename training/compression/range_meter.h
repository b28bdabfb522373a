#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibblenet {

/// Measures the largest magnitude of a layer's inputs that 8 bits shall hold: the 99.999th
/// percentile of all magnitudes, exactly. A few larger ones saturate, and all others get finer
/// steps.
class RangeMeter {
 public:
  /// `inputs`: how many values will be added, at most.
  explicit RangeMeter(int64_t inputs);

  /// Adds inputs of any sign. NaN counts as 0.
  void add(std::span<const float> inputs);
  /// What was added and still counts: adding these of several meters of as many inputs gives one of
  /// all.
  std::span<const float> largest_so_far() const { return top_; }
  /// The smallest magnitude that at most a hundred-thousandth of `inputs` exceed; the largest
  /// magnitude where that is 0. 0 when no input was another number than 0.
  float largest() const;

 private:
  void keep_largest();

  size_t kept_;             ///< the largest magnitudes that count: the last of them is the percentile
  std::vector<float> top_;  ///< these, and up to as many others
  float least_ = 0;         ///< magnitudes up to this are not among them
};

}  // namespace nibblenet
