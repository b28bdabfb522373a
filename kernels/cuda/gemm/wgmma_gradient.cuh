#pragma once

#include "kernels/cuda/gemm/column_sums.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"
#include "kernels/cuda/gemm/wgmma.cuh"

// The wgmma product that is a gradient of weights. That of inputs is a product over pixels
// (gemm/wgmma.cuh).

namespace nibblenet {

/// Layout of dy's tile for ColumnSums.
struct GradientColumns {
  static constexpr int rows = wgmma_rows;
  static __device__ int offset(int filter, int k) {
    return filter / 64 * 8192 + k * 128 + ((filter % 64 / 8 ^ k % 8) << 4) + filter % 8 * 2;
  }
};

/// Stores the weight sums of a linear layer through shared memory, so that whole lines are read and
/// written.
__device__ __forceinline__ void store_weights_of_linear(const ParameterGradients& epilogue, int first_filter,
                                                        int first_column, const WgmmaSums<wgmma_rows>& sums,
                                                        unsigned char* memory) {
  constexpr int row_floats = wgmma_rows + 4;
  constexpr int fours = wgmma_rows / 4;  ///< of a row
  constexpr int at_once = 4;
  auto* floats = reinterpret_cast<float*>(memory);
  sums.for_each_pair([&](int j) {
    return [floats, j](int i, float first, float second) {
      *reinterpret_cast<float2*>(floats + i * row_floats + j) = {first, second};
    };
  });
  __syncthreads();
#pragma unroll 1
  for (int begin = static_cast<int>(threadIdx.x); begin < wgmma_rows * fours; begin += at_once * wgmma_threads) {
    int filter[at_once], column[at_once];
    float4 sum[at_once];
#pragma unroll
    for (int e = 0; e < at_once; ++e) {
      const int i = begin + e * wgmma_threads;
      filter[e] = first_filter + i / fours;
      column[e] = first_column + i % fours * 4;
      sum[e] = *reinterpret_cast<const float4*>(floats + i / fours * row_floats + i % fours * 4);
    }
    epilogue.store_fours(filter, column, sum);
  }
}

/// wgmma weight gradient: dw = dy^T * x. Block (x, y, z) owns 128 columns of dw in device order,
/// 128 filters and split z of the k-tiles over pixels. The blocks of the first columns also compute
/// dbias.
__global__ void __launch_bounds__(wgmma_threads, 2)
    wgmma_weight_kernel(GradientColumnTiles dy, WindowColumnTiles x, WeightGradient gradient, int k_tiles,
                        int of_split) {
  unsigned char* memory = wgmma_memory();
  const ParameterGradients& epilogue = gradient.epilogue;
  const int first_column = static_cast<int>(blockIdx.x) * wgmma_rows;
  const int first_filter = static_cast<int>(blockIdx.y) * wgmma_rows;
  const int split = static_cast<int>(blockIdx.z);
  const int begin = split * of_split;
  const int end = begin + of_split < k_tiles ? begin + of_split : k_tiles;
  const bool with_bias = first_column == 0;
  WgmmaSums<wgmma_rows> sums = {};
  ColumnSums<GradientColumns, wgmma_threads, wgmma_depth> column_sums;
  sum_steps(dy, x, first_filter, first_column, begin, end, memory, sums, [&](const unsigned char* tile) {
    if (with_bias) column_sums.add(tile);
  });
  if (with_bias) {
    column_sums.finish(memory, [&](int i, float sum) { gradient.store_bias(split, first_filter + i, sum); });
    __syncthreads();  // shared memory is free
  }
  if (gradient.partial == nullptr && epilogue.has_fours())
    return store_weights_of_linear(epilogue, first_filter, first_column, sums, memory);
  sums.for_each_pair([&](int j) {
    return [&, column = first_column + j](int i, float first, float second) {
      const int filter = first_filter + i;
      if (filter < epilogue.filters && column < epilogue.length())
        gradient.store_pair(split, filter, column, first, second);
    };
  });
}

}  // namespace nibblenet
