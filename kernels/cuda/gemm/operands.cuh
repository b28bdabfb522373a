#pragma once

#include <algorithm>

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/im2col.cuh"
#include "kernels/cuda/weights/readers.cuh"
#include "kernels/cuda/weights/superblock_scales.cuh"
#include "kernels/cuda/weights/weight_cuda.h"

// From a weight in device memory to what kernels take by value.

namespace nibblenet {

inline FilterSizes filter_sizes(const ConvolutionSizes& s) {
  return {.rows = s.k, .channels = s.c, .taps = s.taps(), .length = s.length()};
}

inline PackedWeights packed_operand(const WeightCuda& w, const FilterSizes& sizes) {
  PackedWeights operand{
      .sizes = sizes, .packed = w.view(), .fixed = {}, .superblocks = w.layout() == WeightLayout::superblocks};
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
    f(Float16Weights{sizes, w.halves(), w.layout() == WeightLayout::superblocks}, result, 1.0F);
  } else {
    throw Error("float16 activations need packed or float16 weights, got float32");
  }
}

/// What steps that differ, times the values of their codes, are multiplied by in halves.
inline float factor_of_differing_steps(const WeightCuda& w) { return w.normalisation() * 8192.0F; }

/// Of weights in superblocks.
inline SuperblockWeights superblock_operand(const WeightCuda& w) {
  const SuperblockSteps steps(w);
  // Codebooks' values and their steps share fp16's range; products of both are below 2^13.
  const float value_factor = factor_of_values(w) * (steps.differ && !w.linear_codes() ? 1.0F / 128.0F : 1.0F);
  SuperblockWeights operand{.layout = w.superblock_layout(),
                            .codes = w.superblocks(),
                            .stored = w.view().values,
                            .value_factor = value_factor,
                            .steps = steps,
                            .inside = steps.inside(),
                            .rows = static_cast<int>(w.shape()[0])};
  if (steps.differ) operand.step_factor = factor_of_differing_steps(w) / value_factor / w.view().scale_to;
  std::copy(w.codebook().values.begin(), w.codebook().values.end(), operand.fixed.values);
  return operand;
}

/// y of a product by `operand`, which is made of `w`.
inline BiasResult<AnyElements> superblock_result(Activations y, const WeightCuda& w, const SuperblockWeights& operand,
                                                 const float* bias, const ConvolutionSizes& s, bool with_relu) {
  BiasResult<AnyElements> result{
      {y.data(), y.precision() == Precision::float16}, bias, s.k, s.outputs(), 1.0F / operand.value_factor, with_relu};
  if (operand.steps.differ) {
    result.factor = 1.0F / factor_of_differing_steps(w);
  } else {
    result.steps = operand.steps.steps;
    result.one_step_for_all = w.view().groups.groups == 1;
  }
  return result;
}

}  // namespace nibblenet
