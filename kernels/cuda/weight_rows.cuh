#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/result.cuh"
#include "kernels/cuda/weight_cuda.h"
#include "kernels/cuda/weights.cuh"

// Any weight as rows of halves in device order, for products that unpack nothing themselves.

namespace nibblenet {

/// rows [K, R S C] = weights times `factor`, rounded. One thread eight neighbours.
template <class Weights>
__global__ void weight_rows_kernel(f16* rows, Weights weights, float factor) {
  auto& table = shared<CodeValues>();
  weights.prepare(table);
  __syncthreads();
  const int pieces = (weights.sizes.length + 7) / 8;
  for_each_index(static_cast<int64_t>(weights.sizes.rows) * pieces, [&](int64_t i) {
    const auto row = static_cast<int>(i / pieces);
    const int k = static_cast<int>(i - static_cast<int64_t>(row) * pieces) * 8;
    float w[8];
    weights.load8(row, k, table, w);
    f16* to = rows + static_cast<int64_t>(row) * weights.sizes.length + k;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (k + e < weights.sizes.length) store_element(to, e, w[e] * factor);
  });
}

/// What a product by a weight's halves does at its end: all of BiasResult but where results go.
template <class Y>
BiasResult<Y> result_of(const WeightCuda& w, const float* bias, int channels, int pixels, bool with_relu) {
  BiasResult<Y> result{{}, bias, channels, pixels, 1.0F / w.normalisation(), with_relu};
  if (w.form() == WeightCuda::Form::packed && w.step_per_channel()) {
    result.factor = 1.0F / w.value_normalisation();
    result.steps = {w.view().scales, w.view().scale_type, w.view().scale_to};
    result.one_step_for_all = w.view().groups.kind == Granularity::Kind::tensor;
  }
  return result;
}

/// Fills `rows` [K, R S C] with the halves that result_of() belongs to.
inline void store_weight_rows(f16* rows, const WeightCuda& w, const FilterSizes& sizes, Stream& stream) {
  const int64_t pieces = static_cast<int64_t>(sizes.rows) * ((sizes.length + 7) / 8);
  const Work work{.bytes = static_cast<double>(w.resident().total()) + 2.0 * sizes.rows * sizes.length};
  if (w.form() == WeightCuda::Form::float16) {  // multiplied already
    const Float16Weights weights{sizes, w.halves(), w.layout() == CodeLayout::superblocks};
    launch("weight_rows", work, grid_for(pieces), stream, weight_rows_kernel<Float16Weights>, rows, weights, 1.0F);
    return;
  }
  PackedWeights weights{
      .sizes = sizes, .packed = w.view(), .fixed = {}, .superblocks = w.layout() == CodeLayout::superblocks};
  std::copy(w.codebook().values.begin(), w.codebook().values.end(), weights.fixed.values);
  weights.step_in_result = w.step_per_channel();
  const float factor = weights.step_in_result ? w.value_normalisation() : w.normalisation();
  launch("weight_rows", work, grid_for(pieces), stream, weight_rows_kernel<PackedWeights>, rows, weights, factor);
}

}  // namespace nibblenet
