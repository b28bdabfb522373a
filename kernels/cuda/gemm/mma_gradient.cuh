#pragma once

#include "kernels/cuda/gemm/column_sums.cuh"
#include "kernels/cuda/gemm/gradient_epilogue.cuh"
#include "kernels/cuda/gemm/mma_gradient_tile.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"

// Gradients of convolutions and linear layers on the tensor cores: implicit GEMM (Chetlur et al. 2014, arXiv 1410.0759)
// of float16 operands with float32 sums. d(i, j) = sum over k of a(i, k) b(j, k), where
//   of x:       i input pixels,  j channels,     k taps and filters    a = dy, b = w
//   of weights: i filters,       j taps and channels,  k output pixels    a = dy, b = x
// A block owns 128 x 128, 128 x 64 or 64 x 128 sums; its eight warps, 2 down and 4 across, share them evenly. Long
// reductions of few sums are cut into parts, which a second kernel adds up in their order: the same bits on every run.

namespace nibblenet {

/// A warp's sums: d[f][t] is the fragment 16 f rows down and 8 t columns across.
template <class A, class B>
struct GradientSums {
  static constexpr int down = A::Tile::rows / 32;
  static constexpr int across = B::Tile::rows / 32;
  float d[down][across][4];

  /// Calls use(i, j, first, second) for each of a lane's pairs of neighbours; i and j count from the block's first.
  template <class Use>
  __device__ __forceinline__ void for_each_pair(Use use) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int f = 0; f < down; ++f)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int t = 0; t < across; ++t)
          use(row_of_warp() + 16 * f + 8 * half + lane / 4, column_of_warp() + 8 * t + lane % 4 * 2, d[f][t][2 * half],
              d[f][t][2 * half + 1]);
  }

  static __device__ int row_of_warp() { return static_cast<int>(threadIdx.x) / 128 * 16 * down; }
  static __device__ int column_of_warp() { return static_cast<int>(threadIdx.x) / 32 % 4 * 8 * across; }
};

/// Dynamic shared memory of a block: the ring of both operands' tiles.
template <class A, class B>
struct GradientShared {
  static constexpr int stage = A::Tile::bytes + B::Tile::bytes;
  static constexpr int bytes = gradient_stages * stage;
};

/// sums += tile of a * tile of b.
template <class A, class B>
__device__ __forceinline__ void multiply_tiles(const unsigned char* a_tile, const unsigned char* b_tile,
                                               GradientSums<A, B>& sums) {
  using Sums = GradientSums<A, B>;
#pragma unroll
  for (int k = 0; k < gradient_depth; k += 16) {
    uint32_t a[Sums::down][4];
    uint32_t b[Sums::across / 2][2][2];
#pragma unroll
    for (int f = 0; f < Sums::down; ++f) A::Tile::load_a(a_tile, Sums::row_of_warp() + 16 * f, k, a[f]);
#pragma unroll
    for (int pair = 0; pair < Sums::across / 2; ++pair)
      B::Tile::load_b(b_tile, Sums::column_of_warp() + 16 * pair, k, b[pair]);
#pragma unroll
    for (int f = 0; f < Sums::down; ++f)
#pragma unroll
      for (int t = 0; t < Sums::across; ++t) mma_16816(sums.d[f][t], a[f], b[t / 2][t % 2]);
  }
}

/// Sums over k in [begin, end), both multiples of the depth or k's end. Calls look_at(tile of a) for every tile.
template <class A, class B, class LookAt>
__device__ __forceinline__ void sum_products(const A& a, const B& b, int first_i, int first_j, int begin, int end,
                                             unsigned char* memory, GradientSums<A, B>& sums, LookAt look_at) {
  constexpr int stage_bytes = GradientShared<A, B>::stage;
  const typename A::Place of_a = a.place(first_i);
  const typename B::Place of_b = b.place(first_j);
  const auto copy = [&](int k, int stage) {
    if (k < end) {
      a.copy(of_a, k, memory + stage * stage_bytes);
      b.copy(of_b, k, memory + stage * stage_bytes + A::Tile::bytes);
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < gradient_stages - 1; ++i) copy(begin + i * gradient_depth, i);
  int stage = 0;
#pragma unroll 1
  for (int k = begin; k < end; k += gradient_depth) {
    cp_async_wait<gradient_stages - 2>();
    __syncthreads();  // this stage has arrived, and nobody reads the last one any more
    copy(k + (gradient_stages - 1) * gradient_depth, (stage + gradient_stages - 1) % gradient_stages);
    const unsigned char* tile = memory + stage * stage_bytes;
    look_at(tile);
    multiply_tiles<A, B>(tile, tile + A::Tile::bytes, sums);
    stage = (stage + 1) % gradient_stages;
  }
  cp_async_wait<0>();
  __syncthreads();  // shared memory may be used for something else
}

/// dx [input pixels, C], multiplied by `factor`.
struct DataGradient {
  HalfGradient dx;
  int pixels;
  int channels;
  float factor;
  float* partial;  ///< [parts, input pixels, C]; null: the sums are whole
};

/// Sums as halves through shared memory, so that they leave 16 bytes at a time. C is a multiple of 8.
template <class A, class B>
__device__ __forceinline__ void store_halves(const DataGradient& result, int first_pixel, int first_channel,
                                             const GradientSums<A, B>& sums, unsigned char* memory) {
  constexpr int row_halves = B::Tile::rows + 8;  // the odd end spreads rows over the banks
  auto* halves = reinterpret_cast<f16*>(memory);
  sums.for_each_pair([&](int i, int j, float first, float second) {
    *reinterpret_cast<uint32_t*>(halves + i * row_halves + j) =
        pair_of_halves(first * result.factor, second * result.factor);
  });
  __syncthreads();
  constexpr int pieces = B::Tile::rows / 8;
  for (int i = static_cast<int>(threadIdx.x); i < A::Tile::rows * pieces; i += gradient_threads) {
    const int pixel = first_pixel + i / pieces;
    const int channel = first_channel + i % pieces * 8;
    if (pixel >= result.pixels || channel >= result.channels) continue;
    result.dx.store((static_cast<int64_t>(pixel) * result.channels + channel) / 8,
                    *reinterpret_cast<const uint4*>(halves + i / pieces * row_halves + i % pieces * 8));
  }
}

/// dx = dy * w. Block (x, y, z) owns 128 pixels, `channels` channels and part z of k, `depth` long.
template <int channels>
__global__ void __launch_bounds__(gradient_threads, 2)
    data_gradient_kernel(ContributionTiles<128> dy, FilterTiles<channels> w, DataGradient result, int length,
                         int depth) {
  unsigned char* memory = dynamic_shared();
  const int first_pixel = static_cast<int>(blockIdx.x) * 128;
  const int first_channel = static_cast<int>(blockIdx.y) * channels;
  const int begin = static_cast<int>(blockIdx.z) * depth;
  const int end = begin + depth < length ? begin + depth : length;
  GradientSums<ContributionTiles<128>, FilterTiles<channels>> sums = {};
  sum_products(dy, w, first_pixel, first_channel, begin, end, memory, sums, [](const unsigned char*) {});
  if (result.partial == nullptr) return store_halves(result, first_pixel, first_channel, sums, memory);
  float* partial = result.partial + static_cast<int64_t>(blockIdx.z) * result.pixels * result.channels;
  sums.for_each_pair([&](int i, int j, float first, float second) {
    const int pixel = first_pixel + i;
    const int channel = first_channel + j;
    if (pixel < result.pixels && channel < result.channels)
      *reinterpret_cast<float2*>(partial + static_cast<int64_t>(pixel) * result.channels + channel) = {first, second};
  });
}

/// dx = sum over parts, the first one first. One thread eight neighbours.
__global__ void sum_data_gradient_kernel(DataGradient result, int parts) {
  const int64_t count = static_cast<int64_t>(result.pixels) * result.channels / 8;
  for_each_index(count, [&](int64_t i) {
    float sum[8] = {};
    for (int part = 0; part < parts; ++part) {
      const auto* eight = reinterpret_cast<const float4*>(result.partial) + 2 * (part * count + i);
      const float4 low = eight[0], high = eight[1];
      const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += values[e];
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] *= result.factor;
    result.dx.store(i, eight_halves(sum));
  });
}

/// dw = dy^T * x, and by the blocks of the first columns dbias. Block (x, y, z) owns 128 columns of dw in device order,
/// `filters` filters and part z of the pixels, `depth` of them.
template <int filters, bool aligned>
__global__ void __launch_bounds__(gradient_threads, 2)
    weight_gradient_kernel(OutputTiles<filters> dy, WindowTiles<128, aligned> x, WeightGradient gradient, int pixels,
                           int depth) {
  unsigned char* memory = dynamic_shared();
  const ParameterGradients& result = gradient.result;
  const int first_column = static_cast<int>(blockIdx.x) * 128;
  const int first_filter = static_cast<int>(blockIdx.y) * filters;
  const int part = static_cast<int>(blockIdx.z);
  const int begin = part * depth;
  const int end = begin + depth < pixels ? begin + depth : pixels;
  const bool with_bias = first_column == 0;
  GradientSums<OutputTiles<filters>, WindowTiles<128, aligned>> sums = {};
  ColumnSums<typename OutputTiles<filters>::Tile, gradient_threads, gradient_depth> column_sums;
  sum_products(dy, x, first_filter, first_column, begin, end, memory, sums, [&](const unsigned char* tile) {
    if (with_bias) column_sums.add(tile);
  });
  if (with_bias)
    column_sums.finish(memory, [&](int i, float sum) { gradient.store_bias(part, first_filter + i, sum); });
  sums.for_each_pair([&](int i, int j, float first, float second) {
    const int filter = first_filter + i;
    const int column = first_column + j;
    if (filter < result.filters && column < result.length()) gradient.store_pair(part, filter, column, first, second);
  });
}

/// dw and dbias = sums over parts, the first one first. One thread an element, in PyTorch's order.
__global__ void sum_weight_gradient_kernel(WeightGradient gradient, int parts) {
  const ParameterGradients& result = gradient.result;
  const int64_t count = static_cast<int64_t>(result.filters) * result.length();
  for_each_index(count + result.filters, [&](int64_t i) {
    float sum = 0.0F;
    if (i >= count) {
      const auto filter = static_cast<int>(i - count);
      for (int part = 0; part < parts; ++part) sum += gradient.partial_bias[part * result.filters + filter];
      return result.store_bias(filter, sum);
    }
    const auto filter = static_cast<int>(i / result.length());
    const auto within = static_cast<int>(i % result.length());
    const int column = within % result.taps * result.channels + within / result.taps;
    for (int part = 0; part < parts; ++part) sum += gradient.partial[part * count + filter * result.length() + column];
    result.store(filter, column, sum);
  });
}

}  // namespace nibblenet
