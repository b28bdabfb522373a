#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/io/state_dict.h"
#include "kernels/backend.h"
#include "training/compression/adam.h"

namespace nibblenet {

/// Throws UsageError naming the weight for schemes that cannot be trained: sorted ones, zero
/// points, and, unless `codes_stay` (QuantizedWeight::step_scales() alone is used), trellis strings
/// and rotated weights.
void expect_trainable(const Scheme& scheme, std::string_view name, bool codes_stay = false);

/// A weight that trains in packed form. SGD changes float master weights. The forward pass sees
/// them rounded to the values that the packed weight decodes to, bit for bit. It also learns
///   the scales: LSQ's gradient (Esser 2020, arXiv 1902.08153);
///   the values of a trained codebook: each the sum of its weights' gradients (Han 2016, arXiv
///   1510.00149).
/// Scales and values are updated on the host: thousands of numbers beside millions.
class QuantizedWeight {
 public:
  /// Starts from the scales and the codebook of `packed` (its codes do not matter) and the master
  /// weights, which lie on the host. With `keep_zeros`, weights that are 0 stay 0: the value
  /// nearest to 0 of a trained codebook becomes 0. Throws as expect_trainable.
  QuantizedWeight(Backend& backend, const PackedTensor& packed, TensorView<const float> master, bool keep_zeros,
                  std::string name);
  /// Keeps the codes of `packed`, or its trellis strings: for step_scales().
  QuantizedWeight(Backend& backend, const PackedTensor& packed, std::string name);

  /// The master weights, in the backend's memory. Call round() after writing to them.
  TensorView<float> master() { return master_.view(); }
  /// Writes the rounded master weights to `values`.
  void round(TensorView<float> values);
  /// One step of SGD on everything that is learned, from dweights = dL/d(rounded values), which it
  /// overwrites. `momentum` and weight decay are those of the master weights. Call round()
  /// afterwards.
  void step(TensorView<float> dweights, TensorView<float> momentum, const SgdParameters& parameters);
  /// Step `number` of Adam (from 1) on scales and values alone, from dweights. A value of 0 stays
  /// 0.
  void step_scales(TensorView<float> dweights, double learning_rate, int64_t number);

  /// The packed weight whose decoded values are what round() gives.
  PackedTensor packed() const;

  /// Adds the state that a resumed run needs beside packed() and the momentum: the weights and
  /// W.scales before rounding, and the momenta of W.scales and W.codebook.
  void save(StateDict& masters, StateDict& momenta) const;
  /// Reads what save() added. Requires: this was made from the same packed() and master weights.
  /// Throws FormatError or ShapeError for tensors that are missing or do not fit.
  void restore(const StateDict& masters, const StateDict& momenta);

 private:
  QuantizedWeight(Backend& backend, const PackedTensor& packed, TensorView<const float> master, bool keep_zeros,
                  bool codes_stay, std::string name);

  RoundingRule rule() const;
  /// Rotates the inputs of weights, or of their gradients, where the scheme says so.
  void rotate(TensorView<float> weights) const;
  float in_range(float scale) const;       ///< of its type
  float stored_scale(size_t group) const;  ///< rounded to its type, as a packed weight has it
  void upload_steps();
  void update_scales(std::span<const float> dsteps, const SgdParameters& parameters);
  void update_values(std::span<const float> dcodebook, const SgdParameters& parameters);
  double mean_square_step() const;

  Backend& backend_;
  Training& training_;
  std::string name_;
  Scheme scheme_;
  GroupMap groups_;
  bool keep_zeros_;
  bool learns_values_;
  Codebook codebook_;

  Rotation rotation_;           ///< of the weights
  Tensor<float> master_;        ///< the codes, where they stay
  std::vector<uint8_t> codes_;  ///< the same, packed; empty: they are the nearest ones
  Adam scale_adam_;
  Adam value_adam_;
  std::vector<float> scales_;  ///< in float32 even where they are stored as f16
  std::vector<float> scale_momenta_;
  std::vector<float> values_;  ///< ascending; empty where the method fixes them
  std::vector<float> value_momenta_;

  Tensor<float> steps_;  ///< of the stored scales, in the backend's memory
  Tensor<float> dsteps_;
  Tensor<float> dcodebook_;
};

}  // namespace nibblenet
