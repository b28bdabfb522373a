#pragma once

#include <algorithm>

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/im2col.cuh"
#include "kernels/cuda/gemm/product.h"
#include "kernels/cuda/weights/readers.cuh"
#include "kernels/cuda/weights/superblock_scales.cuh"

// Kernel parameters made from a weight in device memory.

namespace nibblenet {

inline FilterSizes filter_sizes(const ConvolutionSizes& s) {
  return {.rows = s.k, .channels = s.c, .taps = s.taps(), .length = s.length()};
}

inline PackedWeights packed_operand(const WeightCuda& w, const FilterSizes& sizes) {
  PackedWeights operand{.sizes = sizes,
                        .packed = w.view(),
                        .fixed = {},
                        .superblocks = w.layout() == WeightLayout::superblocks,
                        .string_blocks = w.layout() == WeightLayout::strings};
  std::copy(w.codebook().values.begin(), w.codebook().values.end(), operand.fixed.values);
  return operand;
}

/// Epilogue of a product whose weights were multiplied by 1 / `factor`. `y`: as BiasEpilogue stores
/// it.
template <class Y>
BiasEpilogue<Y> epilogue_of(Y y, const ForwardProduct& f, float factor) {
  return {y, f.bias.data(), f.shape.sizes.k, f.shape.sizes.outputs(), factor, f.epilogue == Epilogue::relu};
}
inline AnyElements any_elements(Activations y) { return {y.data(), y.precision() == Precision::float16}; }

/// Calls start(weights, epilogue, factor) for a product that rounds weights to fp16. `factor`: the
/// power of two that decoded weights are multiplied by first; the epilogue divides by it.
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
    // Fp16 values in memory have their factor already.
    start(Float16Weights{sizes, w.fp16(), w.layout() == WeightLayout::superblocks}, epilogue, 1.0F);
  } else {
    throw Error("float16 activations need packed or float16 weights, got float32");
  }
}

/// Epilogue of a product by the values of trellis strings, without scales.
inline BiasEpilogue<AnyElements> string_epilogue(const ForwardProduct& f) {
  BiasEpilogue<AnyElements> epilogue = epilogue_of(any_elements(f.y), f, 1.0F);
  epilogue.steps = {f.w.view().scales, f.w.view().scale_type, f.w.view().scale_to};
  return epilogue;
}

/// The layout of weights that are expanded to superblocks of fp16 values.
inline Superblocks fp16_superblocks(const ConvolutionSizes& s) { return {s.k, s.length(), 16}; }

/// Factor of step times code value in fp16, where steps differ inside a row.
inline float factor_of_differing_steps(const WeightCuda& w) { return w.normalisation() * 8192.0F; }

/// Kernel parameters of a weight in superblocks or in string blocks.
inline SuperblockWeights superblock_operand(const WeightCuda& w) {
  const SuperblockSteps steps(w);
  // A codebook value times its step must fit fp16: products of both are below 2^13.
  const float value_factor = factor_of_values(w) * (steps.differ && !w.traits().integers ? 1.0F / 128.0F : 1.0F);
  SuperblockWeights operand{.layout = w.superblock_layout(),
                            .codes = w.superblocks(),
                            .stored = w.view().values,
                            .value_factor = value_factor,
                            .steps = steps,
                            .inside = steps.inside(),
                            .rows = static_cast<int>(w.shape()[0])};
  if (steps.differ) operand.step_factor = factor_of_differing_steps(w) / value_factor / w.view().scale_to;
  if (w.layout() == WeightLayout::strings) operand.strings = StringBlocks(w.view().trellis());
  std::copy(w.codebook().values.begin(), w.codebook().values.end(), operand.fixed.values);
  return operand;
}

/// Epilogue of a product whose weight is `operand`.
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
