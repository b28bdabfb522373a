#pragma once

#include "kernels/cuda/gemm/column_sums.cuh"
#include "kernels/cuda/gemm/gradient_epilogue.cuh"
#include "kernels/cuda/gemm/mma_gradient_tile.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"

// mma gradients of convolutions and linear layers on the tensor cores: implicit GEMM (Chetlur et
// al. 2014, arXiv 1410.0759) of fp16 operands with float32 sums. d(i, j) = sum over k of a(i, k)
// b(j, k):
//   gradient    i              j                   k                   a    b
//   of x        input pixels   channels            taps and filters    dy   w
//   of weights  filters        taps and channels   output pixels       dy   x
// A block owns 128 x 128, 128 x 64 or 64 x 128 sums, shared evenly by its eight warps in 2 rows of
// 4. Long reductions of few sums are split (split-K). A second kernel adds the splits in their
// order: the same bits on every run.

namespace nibblenet {

/// A warp's sums: d[f][t] is the fragment at row 16 f and column 8 t.
template <class A, class B>
struct GradientSums {
  static constexpr int row_tiles = A::Tile::rows / 32;
  static constexpr int column_tiles = B::Tile::rows / 32;
  float d[row_tiles][column_tiles][4];

  /// Calls use(i, j, first, second) for each pair of neighbours that a lane holds. i and j count
  /// from the block's first.
  template <class Use>
  __device__ __forceinline__ void for_each_pair(Use use) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int f = 0; f < row_tiles; ++f)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int t = 0; t < column_tiles; ++t)
          use(row_of_warp() + 16 * f + 8 * half + lane / 4, column_of_warp() + 8 * t + lane % 4 * 2, d[f][t][2 * half],
              d[f][t][2 * half + 1]);
  }

  static __device__ int row_of_warp() { return static_cast<int>(threadIdx.x) / 128 * 16 * row_tiles; }
  static __device__ int column_of_warp() { return static_cast<int>(threadIdx.x) / 32 % 4 * 8 * column_tiles; }
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
    uint32_t a[Sums::row_tiles][4];
    uint32_t b[Sums::column_tiles / 2][2][2];
#pragma unroll
    for (int f = 0; f < Sums::row_tiles; ++f) A::Tile::load_a(a_tile, Sums::row_of_warp() + 16 * f, k, a[f]);
#pragma unroll
    for (int pair = 0; pair < Sums::column_tiles / 2; ++pair)
      B::Tile::load_b(b_tile, Sums::column_of_warp() + 16 * pair, k, b[pair]);
#pragma unroll
    for (int f = 0; f < Sums::row_tiles; ++f)
#pragma unroll
      for (int t = 0; t < Sums::column_tiles; ++t) mma_16816(sums.d[f][t], a[f], b[t / 2][t % 2]);
  }
}

/// sums += products over k in [begin, end). Both bounds are multiples of the depth, or the end of
/// k. Calls look_at(tile of a) for every tile.
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
    __syncthreads();  // this stage has landed, and all threads are done reading the last one
    copy(k + (gradient_stages - 1) * gradient_depth, (stage + gradient_stages - 1) % gradient_stages);
    const unsigned char* tile = memory + stage * stage_bytes;
    look_at(tile);
    multiply_tiles<A, B>(tile, tile + A::Tile::bytes, sums);
    stage = (stage + 1) % gradient_stages;
  }
  cp_async_wait<0>();
  __syncthreads();  // shared memory is free
}

/// Epilogue of the data gradient: dx [input pixels, C] = sums * factor.
struct DataGradient {
  HalfGradient dx;
  int pixels;
  int channels;
  float factor;
  float* partial;  ///< [splits, input pixels, C]; null: the sums are whole
};

/// Stores sums as fp16 through shared memory, 16 bytes at a time. C is a multiple of 8.
template <class A, class B>
__device__ __forceinline__ void store_fp16(const DataGradient& epilogue, int first_pixel, int first_channel,
                                           const GradientSums<A, B>& sums, unsigned char* memory) {
  constexpr int row_fp16 = B::Tile::rows + 8;  // padding spreads rows over the banks
  auto* fp16 = reinterpret_cast<f16*>(memory);
  sums.for_each_pair([&](int i, int j, float first, float second) {
    *reinterpret_cast<uint32_t*>(fp16 + i * row_fp16 + j) =
        pair_of_fp16(first * epilogue.factor, second * epilogue.factor);
  });
  __syncthreads();
  constexpr int vectors = B::Tile::rows / 8;
  for (int i = static_cast<int>(threadIdx.x); i < A::Tile::rows * vectors; i += gradient_threads) {
    const int pixel = first_pixel + i / vectors;
    const int channel = first_channel + i % vectors * 8;
    if (pixel >= epilogue.pixels || channel >= epilogue.channels) continue;
    epilogue.dx.store((static_cast<int64_t>(pixel) * epilogue.channels + channel) / 8,
                      *reinterpret_cast<const uint4*>(fp16 + i / vectors * row_fp16 + i % vectors * 8));
  }
}

/// Data gradient: dx = dy * w. Block (x, y, z) owns 128 pixels, `channels` channels and split z of
/// k, `depth` long.
template <int channels>
__global__ void __launch_bounds__(gradient_threads, 2)
    data_gradient_kernel(ContributionTiles<128> dy, FilterTiles<channels> w, DataGradient epilogue, int length,
                         int depth) {
  unsigned char* memory = dynamic_shared();
  const int first_pixel = static_cast<int>(blockIdx.x) * 128;
  const int first_channel = static_cast<int>(blockIdx.y) * channels;
  const int begin = static_cast<int>(blockIdx.z) * depth;
  const int end = begin + depth < length ? begin + depth : length;
  GradientSums<ContributionTiles<128>, FilterTiles<channels>> sums = {};
  sum_products(dy, w, first_pixel, first_channel, begin, end, memory, sums, [](const unsigned char*) {});
  if (epilogue.partial == nullptr) return store_fp16(epilogue, first_pixel, first_channel, sums, memory);
  float* partial = epilogue.partial + static_cast<int64_t>(blockIdx.z) * epilogue.pixels * epilogue.channels;
  sums.for_each_pair([&](int i, int j, float first, float second) {
    const int pixel = first_pixel + i;
    const int channel = first_channel + j;
    if (pixel < epilogue.pixels && channel < epilogue.channels)
      *reinterpret_cast<float2*>(partial + static_cast<int64_t>(pixel) * epilogue.channels + channel) = {first, second};
  });
}

/// dx = sum over the splits in their order. One thread per eight neighbours.
__global__ void sum_data_gradient_kernel(DataGradient epilogue, int splits) {
  const int64_t count = static_cast<int64_t>(epilogue.pixels) * epilogue.channels / 8;
  for_each_index(count, [&](int64_t i) {
    float sum[8] = {};
    for (int split = 0; split < splits; ++split) {
      const auto* eight = reinterpret_cast<const float4*>(epilogue.partial) + 2 * (split * count + i);
      const float4 low = eight[0], high = eight[1];
      const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += values[e];
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] *= epilogue.factor;
    epilogue.dx.store(i, eight_fp16(sum));
  });
}

/// Weight gradient: dw = dy^T * x. Block (x, y, z) owns 128 columns of dw in device order,
/// `filters` filters and split z of the pixels, `depth` long. The blocks of the first columns also
/// compute dbias.
template <int filters, bool aligned>
__global__ void __launch_bounds__(gradient_threads, 2)
    weight_gradient_kernel(OutputTiles<filters> dy, WindowTiles<128, aligned> x, WeightGradient gradient, int pixels,
                           int depth) {
  unsigned char* memory = dynamic_shared();
  const ParameterGradients& epilogue = gradient.epilogue;
  const int first_column = static_cast<int>(blockIdx.x) * 128;
  const int first_filter = static_cast<int>(blockIdx.y) * filters;
  const int split = static_cast<int>(blockIdx.z);
  const int begin = split * depth;
  const int end = begin + depth < pixels ? begin + depth : pixels;
  const bool with_bias = first_column == 0;
  GradientSums<OutputTiles<filters>, WindowTiles<128, aligned>> sums = {};
  ColumnSums<typename OutputTiles<filters>::Tile, gradient_threads, gradient_depth> column_sums;
  sum_products(dy, x, first_filter, first_column, begin, end, memory, sums, [&](const unsigned char* tile) {
    if (with_bias) column_sums.add(tile);
  });
  if (with_bias)
    column_sums.finish(memory, [&](int i, float sum) { gradient.store_bias(split, first_filter + i, sum); });
  sums.for_each_pair([&](int i, int j, float first, float second) {
    const int filter = first_filter + i;
    const int column = first_column + j;
    if (filter < epilogue.filters && column < epilogue.length())
      gradient.store_pair(split, filter, column, first, second);
  });
}

/// dw and dbias = sums over the splits in their order. One thread per element, in PyTorch's order.
__global__ void sum_weight_gradient_kernel(WeightGradient gradient, int splits) {
  const ParameterGradients& epilogue = gradient.epilogue;
  const int64_t count = static_cast<int64_t>(epilogue.filters) * epilogue.length();
  for_each_index(count + epilogue.filters, [&](int64_t i) {
    float sum = 0.0F;
    if (i >= count) {
      const auto filter = static_cast<int>(i - count);
      for (int split = 0; split < splits; ++split) sum += gradient.partial_bias[split * epilogue.filters + filter];
      return epilogue.store_bias(filter, sum);
    }
    const auto filter = static_cast<int>(i / epilogue.length());
    const auto within = static_cast<int>(i % epilogue.length());
    const int column = within % epilogue.taps * epilogue.channels + within / epilogue.taps;
    for (int split = 0; split < splits; ++split)
      sum += gradient.partial[split * count + filter * epilogue.length() + column];
    epilogue.store(filter, column, sum);
  });
}

}  // namespace nibblenet
