#pragma once

#include <algorithm>

#include "kernels/cuda/images.cuh"
#include "kernels/cuda/result.cuh"
#include "kernels/cuda/weight_cuda.h"
#include "kernels/cuda/weights.cuh"

// From a weight in device memory to what kernels take by value.

namespace nibblenet {

inline FilterSizes filter_sizes(const ConvolutionSizes& s) {
  return {.rows = s.k, .channels = s.c, .taps = s.taps(), .length = s.length()};
}

inline PackedWeights packed_operand(const WeightCuda& w, const FilterSizes& sizes) {
  PackedWeights operand{
      .sizes = sizes, .packed = w.view(), .fixed = {}, .superblocks = w.layout() == CodeLayout::superblocks};
  std::copy(w.codebook().values.begin(), w.codebook().values.end(), operand.fixed.values);
  return operand;
}

/// Calls f(weights, result, factor) for a product whose weights are rounded to halves: `factor` is the power of two
/// that decoded weights are multiplied by before, and `result` undoes it.
template <class Y, class F>
void with_half_operands(Y y, const WeightCuda& w, const float* bias, const ConvolutionSizes& s, bool with_relu, F f) {
  const FilterSizes sizes = filter_sizes(s);
  BiasResult<Y> result{y, bias, s.k, s.outputs(), 1.0F / w.normalisation(), with_relu};
  if (w.form() == WeightCuda::Form::packed) {
    PackedWeights operand = packed_operand(w, sizes);
    if (w.step_per_channel()) {
      operand.step_in_result = true;
      result.factor = 1.0F / w.value_normalisation();
      result.steps = {w.view().scales, w.view().scale_type, w.view().scale_to};
      result.one_step_for_all = w.view().groups.kind == Granularity::Kind::tensor;
    }
    f(operand, result, 1.0F / result.factor);
  } else if (w.form() == WeightCuda::Form::float16) {
    // Halves in memory were multiplied already.
    f(Float16Weights{sizes, w.halves(), w.layout() == CodeLayout::superblocks}, result, 1.0F);
  } else {
    throw Error("float16 activations need packed or float16 weights, got float32");
  }
}

}  // namespace nibblenet
