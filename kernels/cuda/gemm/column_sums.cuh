#pragma once

#include "kernels/cuda/device/element.cuh"

namespace nibblenet {

/// Column sums of dy (the bias gradient), taken from the tiles that a weight gradient loads anyway.
/// A thread owns two filters and a part of the depth. At the end, the first threads add the parts
/// in their order. `Tile`: fp16 values of `rows` filters; element (filter, k) lies at byte
/// offset(filter, k), and an odd filter's element behind the even one's.
template <class Tile, int threads, int tile_depth>
struct ColumnSums {
  static constexpr int pairs = Tile::rows / 2;
  static constexpr int groups = threads / pairs;
  static constexpr int depth = tile_depth / groups;
  float2 sum = {0.0F, 0.0F};

  __device__ __forceinline__ void add(const unsigned char* tile) {
    const int filter = static_cast<int>(threadIdx.x) % pairs * 2;
    const int first = static_cast<int>(threadIdx.x) / pairs * depth;
#pragma unroll
    for (int k = 0; k < depth; ++k) {
      const auto* pair = reinterpret_cast<const f16*>(tile + Tile::offset(filter, first + k));
      sum.x += load_element(pair, 0);
      sum.y += load_element(pair, 1);
    }
  }
  /// Calls store(filter, sum) for every filter of the block, from one thread each. All threads.
  template <class Store>
  __device__ __forceinline__ void finish(unsigned char* memory, Store store) const {
    auto* sums = reinterpret_cast<float2*>(memory);  // [groups, pairs]
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= pairs) return;
    float2 total = {0.0F, 0.0F};
    for (int group = 0; group < groups; ++group) {
      total.x += sums[group * pairs + static_cast<int>(threadIdx.x)].x;
      total.y += sums[group * pairs + static_cast<int>(threadIdx.x)].y;
    }
    store(static_cast<int>(threadIdx.x) * 2, total.x);
    store(static_cast<int>(threadIdx.x) * 2 + 1, total.y);
  }
};

}  // namespace nibblenet
