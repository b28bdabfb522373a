#pragma once

#include "kernels/cuda/device/workspace.h"
#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/split_k.cuh"

// What the kernels for linear layers of few rows share. Their columns are split between blocks.

namespace nibblenet {

/// Most shared memory of a block. From compute capability 9.0 on it holds all of a block's weights
/// in AlexNet's first linear layer at 4 bits. Two such blocks do not share a multiprocessor, which
/// would keep others idle; a block of few_pixels.cuh or of the next linear layer still fits beside.
constexpr int few_rows_shared_bytes(bool of_90) { return of_90 ? 145 << 10 : 98 << 10; }

/// Where the sums of y [batch, K] go. Block (x, y) owns some rows of y's transpose, the same for
/// all y, and split y of the columns.
struct SplitResults {
  int batch;
  BiasEpilogue<AnyElements> epilogue;
  int splits = 0;                  ///< of the columns, each a block's
  float* partial = nullptr;        ///< [splits, batch, rows]
  unsigned* semaphores = nullptr;  ///< by block row: how many splits are done
};

/// Reserves what several splits need, for `block_rows` blocks of rows.
inline void reserve(SplitResults& results, int64_t block_rows, Workspace& workspace) {
  if (results.splits == 1) return;
  results.partial = workspace.floats(static_cast<size_t>(results.splits) * static_cast<size_t>(results.batch) *
                                     static_cast<size_t>(results.epilogue.rows));
  results.semaphores = workspace.counters(static_cast<size_t>(block_rows));
}

/// y = epilogue(sum over the splits in their order), computed by the last block to arrive.
__device__ __forceinline__ void add_splits(const SplitResults& p, int row) {
  const int64_t stride = static_cast<int64_t>(p.batch) * p.epilogue.rows;
  for (int n = 0; n < p.batch && row < p.epilogue.rows; ++n) {
    const float* partial = p.partial + static_cast<int64_t>(n) * p.epilogue.rows + row;
    float sum = 0.0F;
#pragma unroll 8
    for (int split = 0; split < p.splits; ++split) sum += __ldcg(partial + split * stride);
    p.epilogue.store(row, n, 0, sum);
  }
}

/// Stores the sums of a block's split: sum(n) of its row, for each n below the batch. With several
/// splits, the last block to arrive adds them. All threads, one row each.
template <class Sum>
__device__ __forceinline__ void finish_split(const SplitResults& p, int row, int split, Sum sum) {
  if (p.splits == 1) {
    for (int n = 0; n < p.batch; ++n) p.epilogue.store(row, n, 0, sum(n));
    return;
  }
  for (int n = 0; n < p.batch && row < p.epilogue.rows; ++n)
    p.partial[(static_cast<int64_t>(split) * p.batch + n) * p.epilogue.rows + row] = sum(n);
  if (arrives_last(p.semaphores[blockIdx.x], p.splits)) add_splits(p, row);
}

}  // namespace nibblenet
