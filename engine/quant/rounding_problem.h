#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/quant/entropy_model.h"
#include "engine/quant/group_scales.h"
#include "engine/quant/hessian_factor.h"
#include "engine/quant/packed_tensor.h"
#include "engine/quant/rate_cost.h"

namespace nibblenet {

/// The weights of a tensor as a matrix for GPTQ: rows are output channels, columns are live inputs
/// in the order of rounding. It holds the values to choose from, and the cost of each.
class RoundingProblem {
 public:
  /// `packed` holds the weights rounded to nearest. All three must outlive it.
  RoundingProblem(const PackedTensor& packed, TensorView<const float> weights, const HessianFactor& factor,
                  const RateCost& rate);
  RoundingProblem(const RoundingProblem&) = delete;  // view_ points into codebook_
  RoundingProblem& operator=(const RoundingProblem&) = delete;

  int64_t rows() const { return view_.channels; }
  int64_t columns() const { return factor_.count(); }
  const HessianFactor& factor() const { return factor_; }
  float weight(int64_t row, int64_t column) const { return weights_[row * view_.channel_elements + input(column)]; }
  /// The value of a code in a row and column.
  float value(int64_t row, int64_t column, uint32_t code) const { return value_of(code, step_of(row, column)); }
  /// Rounding errors to nearest: weights minus their nearest values, [columns].
  void nearest_errors(int64_t row, float* errors) const;

  /// The code of least ((target - value) scale)^2 plus the cost of its bits.
  uint32_t best_code(int64_t row, int64_t column, float target, float scale) const;

  bool weighs_bits() const { return !bit_costs_.empty(); }
  /// Sets the cost of bits by the frequency of each code in `codes`, in packed's layout.
  void count_rates(const std::vector<uint8_t>& codes);
  /// Cost of the bits of a row of codes, [columns], minus that of the nearest codes.
  double cost_above_nearest(int64_t row, const uint8_t* codes) const;

  /// Writes a row of codes, [columns], in packed's layout. Codes of dead inputs stay.
  void store(PackedTensor& packed, int64_t row, const uint8_t* codes) const;

 private:
  int64_t input(int64_t column) const { return factor_.columns[static_cast<size_t>(column)]; }
  Step step_of(int64_t row, int64_t column) const;
  float value_of(uint32_t code, const Step& step) const {
    return reconstruct(codebook_.values[code], step.zero_point, step.step);
  }
  uint32_t cheapest_code(uint32_t nearest, float target, float scale, const Step& step, size_t rate_class,
                         float bit_cost) const;
  void make_bit_costs(const RateCost& rate);

  TensorView<const float> weights_;
  const HessianFactor& factor_;
  CodeLayout layout_;
  bool affine_;
  Codebook codebook_;
  PackedView view_;
  std::array<int, 256> rank_{};   ///< rank of each code among the codebook's ascending values
  std::vector<float> bit_costs_;  ///< cost of a bit in each row, in units of its squared errors; empty: 0
  CodeRates rates_;               ///< bits of each code
};

}  // namespace nibblenet
