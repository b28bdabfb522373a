#pragma once

#include <algorithm>

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/im2col.cuh"
#include "kernels/cuda/gemm/product.h"
#include "kernels/cuda/weights/readers.cuh"
#include "kernels/cuda/weights/superblock_scales.cuh"

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

/// The epilogue of a product whose weights were multiplied by 1 / `factor`. `y`: as BiasEpilogue
/// stores it.
template <class Y>
BiasEpilogue<Y> epilogue_of(Y y, const ForwardProduct& f, float factor) {
  return {y, f.bias.data(), f.shape.sizes.k, f.shape.sizes.outputs(), factor, f.epilogue == Epilogue::relu};
}
inline AnyElements any_elements(Activations y) { return {y.data(), y.precision() == Precision::float16}; }

/// Calls start(weights, result, factor) for a product whose weights are rounded to fp16: `factor`
/// is the power of two that decoded weights are multiplied by before, and `result` undoes it.
template <class Y, class F>
void with_half_operands(Y y, const ForwardProduct& f, F start) {
  const WeightCuda& w = f.w;
  const FilterSizes sizes = filter_sizes(f.shape.sizes);
  BiasEpilogue<Y> epilogue = epilogue_of(y, f, 1.0F / w.normalisation());
  if (w.form() == WeightForm::packed) {
    PackedWeights operand = packed_operand(w, sizes);
    if (w.step_per_channel()) {
      operand.step_in_epilogue = true;
      epilogue.factor = 1.0F / w.value_normalisation();
      epilogue.steps = {w.view().scales, w.view().scale_type, w.view().scale_to};
      epilogue.one_step_for_all = w.view().groups.kind == Granularity::Kind::tensor;
    }
    start(operand, epilogue, 1.0F / epilogue.factor);
  } else if (w.form() == WeightForm::float16) {
    // Fp16 values in memory were multiplied already.
    start(Float16Weights{sizes, w.fp16(), w.layout() == WeightLayout::superblocks}, epilogue, 1.0F);
  } else {
    throw Error("float16 activations need packed or float16 weights, got float32");
  }
}

/// What steps that differ, times the values of their codes, are multiplied by in fp16.
inline float factor_of_differing_steps(const WeightCuda& w) { return w.normalisation() * 8192.0F; }

/// Of weights in superblocks.
inline SuperblockWeights superblock_operand(const WeightCuda& w) {
  const SuperblockSteps steps(w);
  // Codebooks' values and their steps share fp16's range; products of both are below 2^13.
  const float value_factor = factor_of_values(w) * (steps.differ && !w.traits().integers ? 1.0F / 128.0F : 1.0F);
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

/// Epilogue of a product by `operand`, which is made of its weight.
inline BiasEpilogue<AnyElements> superblock_epilogue(const ForwardProduct& f, const SuperblockWeights& operand) {
  BiasEpilogue<AnyElements> epilogue = epilogue_of(any_elements(f.y), f, 1.0F / operand.value_factor);
  if (operand.steps.differ) {
    epilogue.factor = 1.0F / factor_of_differing_steps(f.w);
  } else {
    epilogue.steps = operand.steps.steps;
    epilogue.one_step_for_all = f.w.view().groups.groups == 1;
  }
  return epilogue;
}

}  // namespace nibblenet
