#pragma once

#include "kernels/cuda/gemm/column_sums.cuh"
#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/gradient_epilogue.cuh"
#include "kernels/cuda/gemm/parameter_gradients.cuh"
#include "kernels/cuda/gemm/wgmma_tile.cuh"

// Convolutions and linear layers of many rows, and their gradients, by the asynchronous products of Hopper's
// warpgroups: implicit GEMM (Chetlur et al. 2014, arXiv 1410.0759) of float16 operands with float32 sums. d(i, j) = sum
// over k of a(i, k) b(j, k), where
//   forward:     i output pixels,  j filters,            k taps and channels   a = x, b = w
//   of x:        i input pixels,   j channels,           k taps and filters    a = dy, b = w
//   of weights:  i filters,        j taps and channels,  k output pixels       a = dy, b = x
// A block owns 128 rows and up to 128 columns of sums; each of its two warpgroups 64 rows. Both operands are multiplied
// from shared memory. Long reductions of few sums are cut into parts, added up in their order by a second kernel.

namespace nibblenet {

/// A thread's sums of a block's.
template <int columns>
struct WarpgroupSums {
  float d[columns / 8][4];

  /// Calls begin(j) for each of a thread's pairs of columns (j, j + 1), and what it returns with (i, first, second) for
  /// its rows; i and j count from the block's first.
  template <class Begin>
  __device__ __forceinline__ void for_each_pair(Begin begin) const {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int t = 0; t < columns / 8; ++t) {
      auto use = begin(8 * t + thread % 4 * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        use(thread / 32 * 16 + thread % 32 / 4 + 8 * half, d[t][2 * half], d[t][2 * half + 1]);
    }
  }
};

/// Dynamic shared memory of a block: the ring of both operands' tiles, on 1,024 bytes.
template <class A, class B>
struct WarpgroupShared {
  static constexpr int stage = A::Tile::bytes + B::Tile::bytes;
  static constexpr int alignment = 1024;
  static constexpr int bytes = warpgroup_stages * stage + alignment;
  static __device__ unsigned char* memory() {
    const auto address = reinterpret_cast<uintptr_t>(dynamic_shared());
    return dynamic_shared() + (alignment - address % alignment) % alignment;
  }
};

/// sums = those of steps [begin, end), each 64 of k. Calls look_at(tile of a) for every tile.
template <class A, class B, class LookAt>
__device__ __forceinline__ void sum_steps(const A& a, const B& b, int first_i, int first_j, int begin, int end,
                                          unsigned char* memory, WarpgroupSums<B::Tile::rows>& sums, LookAt look_at) {
  constexpr int stage_bytes = WarpgroupShared<A, B>::stage;
  typename A::Place of_a = a.place(first_i, begin);
  typename B::Place of_b = b.place(first_j, begin);
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const auto copy = [&](int step, int stage) {
    if (step < end) {
      a.copy(of_a, memory + stage * stage_bytes);
      b.copy(of_b, memory + stage * stage_bytes + A::Tile::bytes);
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < warpgroup_stages - 1; ++i) copy(begin + i, i);
  int stage = 0;
  int free_stage = warpgroup_stages - 1;
#pragma unroll 1
  for (int step = begin; step < end; ++step) {
    warpgroup_wait(sums.d);  // the products of the stage that is filled next
    cp_async_wait<warpgroup_stages - 2>();
    show_to_warpgroups();
    __syncthreads();  // this stage has arrived, and nobody multiplies the last one any more
    const unsigned char* tile = memory + stage * stage_bytes;
    warpgroup_begin(sums.d);
#pragma unroll
    for (int k = 0; k < warpgroup_depth / 16; ++k)  // 8,192 bytes: 64 rows, in both orders
      warpgroup_mma<A::Tile::along_k, B::Tile::along_k>(sums.d, tile + warpgroup * 8192, tile + A::Tile::bytes, k);
    warpgroup_commit();
    copy(step + warpgroup_stages - 1, free_stage);
    look_at(tile);
    free_stage = stage;
    stage = stage + 1 == warpgroup_stages ? 0 : stage + 1;
  }
  warpgroup_wait(sums.d);
  cp_async_wait<0>();
  __syncthreads();  // shared memory may be used for something else
}

/// Sizes of a product's result [pixels, channels], which is halves.
struct PixelResult {
  int pixels;
  int channels;    ///< a multiple of 8
  float* partial;  ///< [parts, pixels, channels]; null: the sums are whole
};

/// What becomes of the sums of an output channel, bias and ReLU, and of eight halves, counted in eights.
struct ForwardFinish {
  BiasResult<AnyElements> result;
  __device__ auto of_channel(int channel) const { return result.of_row(channel); }
  __device__ void store(int64_t eight, const uint4& halves) const {
    static_cast<uint4*>(result.y.data)[eight] = halves;
  }
};
/// And of an input channel.
struct GradientFinish {
  HalfGradient dx;
  float factor;
  __device__ auto of_channel(int) const {
    return [factor = factor](float sum) { return sum * factor; };
  }
  __device__ void store(int64_t eight, const uint4& halves) const { dx.store(eight, halves); }
};

/// Sums as halves through shared memory, so that they leave 16 bytes at a time.
template <int columns, class Finish>
__device__ __forceinline__ void store_pixels(const PixelResult& result, const Finish& finish, int first_pixel,
                                             int first_channel, const WarpgroupSums<columns>& sums,
                                             unsigned char* memory) {
  constexpr int row_halves = columns + 8;  // the odd end spreads rows over the banks
  auto* halves = reinterpret_cast<f16*>(memory);
  sums.for_each_pair([&](int j) {
    const int channel = first_channel + j < result.channels ? first_channel + j : 0;
    return [halves, j, first_of = finish.of_channel(channel), second_of = finish.of_channel(channel + 1)](
               int i, float first, float second) {
      *reinterpret_cast<uint32_t*>(halves + i * row_halves + j) = pair_of_halves(first_of(first), second_of(second));
    };
  });
  __syncthreads();
  constexpr int pieces = columns / 8;
  for (int i = static_cast<int>(threadIdx.x); i < warpgroup_rows * pieces; i += warpgroup_threads) {
    const int pixel = first_pixel + i / pieces;
    const int channel = first_channel + i % pieces * 8;
    if (pixel >= result.pixels || channel >= result.channels) continue;
    finish.store((static_cast<int64_t>(pixel) * result.channels + channel) / 8,
                 *reinterpret_cast<const uint4*>(halves + i / pieces * row_halves + i % pieces * 8));
  }
}

/// y = finish(pixels * w). Blocks count channels first, so that neighbours share their pixels; block (x, y) has part y
/// of the steps.
template <class Filters, class Finish>
__global__ void __launch_bounds__(warpgroup_threads, 2)
    warpgroup_pixel_kernel(PixelTiles pixels, Filters w, PixelResult result, Finish finish, int steps, int of_part) {
  constexpr int columns = Filters::Tile::rows;
  unsigned char* memory = WarpgroupShared<PixelTiles, Filters>::memory();
  const int across = (result.channels + columns - 1) / columns;
  const int first_pixel = static_cast<int>(blockIdx.x) / across * warpgroup_rows;
  const int first_channel = static_cast<int>(blockIdx.x) % across * columns;
  const int begin = static_cast<int>(blockIdx.y) * of_part;
  const int end = begin + of_part < steps ? begin + of_part : steps;
  WarpgroupSums<columns> sums = {};
  let_next_kernel_begin();
  wait_for_kernel_before();
  sum_steps(pixels, w, first_pixel, first_channel, begin, end, memory, sums, [](const unsigned char*) {});
  if (result.partial == nullptr) return store_pixels(result, finish, first_pixel, first_channel, sums, memory);
  float* partial = result.partial + static_cast<int64_t>(blockIdx.y) * result.pixels * result.channels;
  sums.for_each_pair([&](int j) {
    return [&, channel = first_channel + j](int i, float first, float second) {
      const int pixel = first_pixel + i;
      if (pixel < result.pixels && channel < result.channels)
        *reinterpret_cast<float2*>(partial + static_cast<int64_t>(pixel) * result.channels + channel) = {first, second};
    };
  });
}

/// y = finish(sum over parts, the first one first). One thread eight neighbours.
template <class Finish>
__global__ void sum_pixel_parts_kernel(PixelResult result, Finish finish, int parts) {
  const int64_t count = static_cast<int64_t>(result.pixels) * result.channels / 8;
  let_next_kernel_begin();
  wait_for_kernel_before();
  for_each_index(count, [&](int64_t i) {
    float sum[8] = {};
    for (int part = 0; part < parts; ++part) {
      const auto* eight = reinterpret_cast<const float4*>(result.partial) + 2 * (part * count + i);
      const float4 low = eight[0], high = eight[1];
      const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += values[e];
    }
    const auto channel = static_cast<int>(8 * i % result.channels);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] = finish.of_channel(channel + e)(sum[e]);
    finish.store(i, eight_halves(sum));
  });
}

/// dy's tile, as ColumnSums reads it.
struct GradientColumns {
  static constexpr int rows = warpgroup_rows;
  static __device__ int offset(int filter, int k) {
    return filter / 64 * 8192 + k * 128 + ((filter % 64 / 8 ^ k % 8) << 4) + filter % 8 * 2;
  }
};

/// Sums of a linear layer's weights through shared memory, so that whole lines are read and written.
__device__ __forceinline__ void store_weights_of_linear(const ParameterGradients& result, int first_filter,
                                                        int first_column, const WarpgroupSums<warpgroup_rows>& sums,
                                                        unsigned char* memory) {
  constexpr int row_floats = warpgroup_rows + 4;
  constexpr int fours = warpgroup_rows / 4;  ///< of a row
  constexpr int at_once = 4;
  auto* floats = reinterpret_cast<float*>(memory);
  sums.for_each_pair([&](int j) {
    return [floats, j](int i, float first, float second) {
      *reinterpret_cast<float2*>(floats + i * row_floats + j) = {first, second};
    };
  });
  __syncthreads();
#pragma unroll 1
  for (int begin = static_cast<int>(threadIdx.x); begin < warpgroup_rows * fours;
       begin += at_once * warpgroup_threads) {
    int filter[at_once], column[at_once];
    float4 sum[at_once];
#pragma unroll
    for (int e = 0; e < at_once; ++e) {
      const int i = begin + e * warpgroup_threads;
      filter[e] = first_filter + i / fours;
      column[e] = first_column + i % fours * 4;
      sum[e] = *reinterpret_cast<const float4*>(floats + i / fours * row_floats + i % fours * 4);
    }
    result.store_fours(filter, column, sum);
  }
}

/// dw = dy^T * x, and by the blocks of the first columns dbias. Block (x, y, z) owns 128 columns of dw in device order,
/// 128 filters and part z of the steps over the pixels.
__global__ void __launch_bounds__(warpgroup_threads, 2)
    warpgroup_weight_kernel(GradientColumnTiles dy, WindowColumnTiles x, WeightGradient gradient, int steps,
                            int of_part) {
  unsigned char* memory = WarpgroupShared<GradientColumnTiles, WindowColumnTiles>::memory();
  const ParameterGradients& result = gradient.result;
  const int first_column = static_cast<int>(blockIdx.x) * warpgroup_rows;
  const int first_filter = static_cast<int>(blockIdx.y) * warpgroup_rows;
  const int part = static_cast<int>(blockIdx.z);
  const int begin = part * of_part;
  const int end = begin + of_part < steps ? begin + of_part : steps;
  const bool with_bias = first_column == 0;
  WarpgroupSums<warpgroup_rows> sums = {};
  ColumnSums<GradientColumns, warpgroup_threads, warpgroup_depth> column_sums;
  sum_steps(dy, x, first_filter, first_column, begin, end, memory, sums, [&](const unsigned char* tile) {
    if (with_bias) column_sums.add(tile);
  });
  if (with_bias) {
    column_sums.finish(memory, [&](int i, float sum) { gradient.store_bias(part, first_filter + i, sum); });
    __syncthreads();  // shared memory may be used for something else
  }
  if (gradient.partial == nullptr && result.has_fours())
    return store_weights_of_linear(result, first_filter, first_column, sums, memory);
  sums.for_each_pair([&](int j) {
    return [&, column = first_column + j](int i, float first, float second) {
      const int filter = first_filter + i;
      if (filter < result.filters && column < result.length()) gradient.store_pair(part, filter, column, first, second);
    };
  });
}

}  // namespace nibblenet
