#pragma once

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/linear/few_outputs_fit.h"
#include "kernels/cuda/weights/readers.cuh"

// Linear layers of few outputs, such as a classifier's last one. They have too few results for the
// tiles of a product, whose blocks would each loop over all of k.

namespace nibblenet {

inline constexpr int few_outputs_threads = 128;

/// Sums of each warp, added in the order of the warps.
struct RowSums {
  float of_warp[few_outputs_threads / 32][few_outputs_rows];
};

/// Loads eight neighbouring weights, rounded to fp16 as in the plain kernel.
__device__ __forceinline__ void load_rounded(const Float16Weights& weights, int row, int k, const CodeValues&, float,
                                             f16 (&w)[8]) {
  *reinterpret_cast<uint4*>(w) =
      *reinterpret_cast<const uint4*>(weights.values + static_cast<int64_t>(row) * weights.sizes.length + k);
}
__device__ __forceinline__ void load_rounded(const PackedWeights& weights, int row, int k, const CodeValues& table,
                                             float factor, f16 (&w)[8]) {
  float decoded[8];
  weights.load8(row, k, table, decoded);
#pragma unroll
  for (int e = 0; e < 8; ++e) store_element(w, e, decoded[e] * factor);
}

/// Few-outputs product: y[n, k] = epilogue(sum over c of x[n, c] w[k, c]). Requires C a multiple of
/// 8, and 16-byte aligned x and fp16 w. A block owns one output of eight rows. Each thread loads
/// eight neighbouring weights at a time and multiplies all rows by them.
template <class Weights>
__global__ void __launch_bounds__(few_outputs_threads)
    few_outputs_kernel(BiasEpilogue<AnyElements> epilogue, const f16* x, Weights weights, float factor) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32;
  const int length = weights.sizes.length;
  const int group = static_cast<int>(blockIdx.x) / epilogue.rows;
  const int output = static_cast<int>(blockIdx.x) - group * epilogue.rows;
  const int first = group * few_outputs_rows;
  const f16* rows = x + static_cast<int64_t>(first) * length;
  pdl_trigger();
  auto& table = shared<CodeValues>();
  weights.prepare(table);
  __syncthreads();

  float sum[few_outputs_rows] = {};
#pragma unroll 1
  for (int k = 8 * thread; k < length; k += 8 * few_outputs_threads) {
    alignas(16) f16 w[8];
    load_rounded(weights, output, k, table, factor, w);
    pdl_wait();
    uint4 vectors[few_outputs_rows];
#pragma unroll
    for (int n = 0; n < few_outputs_rows; ++n)
      if (first + n < epilogue.columns) vectors[n] = *reinterpret_cast<const uint4*>(rows + n * length + k);
#pragma unroll
    for (int n = 0; n < few_outputs_rows; ++n) {
      if (first + n >= epilogue.columns) break;
      const uint32_t words[4] = {vectors[n].x, vectors[n].y, vectors[n].z, vectors[n].w};
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        sum[n] = fmaf(fp16_in(words, e), load_element(w, e), sum[n]);
      }
    }
  }
  pdl_wait();

  auto& sums = shared<RowSums>();
#pragma unroll
  for (int n = 0; n < few_outputs_rows; ++n) {
    sum[n] = warp_sum(sum[n]);
    if (lane == 0) sums.of_warp[warp][n] = sum[n];
  }
  __syncthreads();
  if (thread >= few_outputs_rows) return;
  float total = 0.0F;
#pragma unroll
  for (int of_warp = 0; of_warp < few_outputs_threads / 32; ++of_warp) total += sums.of_warp[of_warp][thread];
  epilogue.store(output, first + thread, 0, total);
}

}  // namespace nibblenet
