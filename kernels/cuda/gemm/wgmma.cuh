#pragma once

#include "kernels/cuda/gemm/epilogue.cuh"
#include "kernels/cuda/gemm/gradient_epilogue.cuh"
#include "kernels/cuda/gemm/wgmma_tile.cuh"

// wgmma products: convolutions and linear layers of many rows, and their gradients, by Hopper's
// asynchronous warpgroup products. Implicit GEMM (Chetlur et al. 2014, arXiv 1410.0759) of fp16
// operands with float32 sums. d(i, j) = sum over k of a(i, k) b(j, k):
//   product     i               j                   k                    a    b
//   forward     output pixels   filters             taps and channels    x    w
//   of x        input pixels    channels            taps and filters     dy   w
//   of weights  filters         taps and channels   output pixels        dy   x
// A block owns 128 rows and up to 128 columns of sums, each of its two warpgroups 64 rows. Both
// operands are read from shared memory. Long reductions of few sums are split (split-K); a second
// kernel adds the splits in their order.

namespace nibblenet {

/// A thread's sums.
template <int columns>
struct WgmmaSums {
  float d[columns / 8][4];

  /// Calls begin(j) for each pair of columns (j, j + 1) that a thread holds. Calls what begin()
  /// returns with (i, first, second) for the thread's rows. i and j count from the block's first.
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

/// Dynamic shared memory of a block, 1,024-byte aligned for the tiles.
inline constexpr int wgmma_alignment = 1024;
__device__ __forceinline__ unsigned char* wgmma_memory() {
  const auto address = reinterpret_cast<uintptr_t>(dynamic_shared());
  return dynamic_shared() + (wgmma_alignment - address % wgmma_alignment) % wgmma_alignment;
}

/// Ring of a block's operands in shared memory. Copies run wgmma_stages - 1 k-tiles ahead. All
/// threads call each function. gemm/wgmma_unpacked.cuh has a ring for packed weights.
template <class A, class B>
class WgmmaRing {
 public:
  static constexpr int stage_bytes = A::Tile::bytes + B::Tile::bytes;
  static constexpr int bytes = wgmma_stages * stage_bytes + wgmma_alignment;

  __device__ WgmmaRing(const A& a, const B& b, int first_i, int first_j, int begin, int end, unsigned char* memory)
      : a_(a),
        b_(b),
        of_a_(a.place(first_i, begin)),
        of_b_(b.place(first_j, begin)),
        begin_(begin),
        end_(end),
        memory_(memory) {}

  /// Tiles of the k-tile that is multiplied.
  __device__ const unsigned char* a() const { return memory_ + stage_ * stage_bytes; }
  __device__ const unsigned char* b() const { return a() + A::Tile::bytes; }

  /// Starts the first copies.
  __device__ __forceinline__ void start() {
#pragma unroll 1
    for (int i = 0; i < wgmma_stages - 1; ++i) copy(begin_ + i, i);
  }
  /// Fills the place of the k-tile before `k_tile`, which is multiplied now.
  __device__ __forceinline__ void refill(int k_tile) { copy(k_tile + wgmma_stages - 1, free_stage_); }
  __device__ __forceinline__ void advance() {
    free_stage_ = stage_;
    stage_ = stage_ + 1 == wgmma_stages ? 0 : stage_ + 1;
  }

 private:
  __device__ __forceinline__ void copy(int k_tile, int stage) {
    if (k_tile < end_) {
      a_.copy(of_a_, memory_ + stage * stage_bytes);
      b_.copy(of_b_, memory_ + stage * stage_bytes + A::Tile::bytes);
    }
    cp_async_commit();
  }

  const A& a_;
  const B& b_;
  typename A::Place of_a_;
  typename B::Place of_b_;
  int begin_, end_;  ///< k-tiles
  unsigned char* memory_;
  int stage_ = 0;
  int free_stage_ = wgmma_stages - 1;
};

/// sums = products over k-tiles [begin, end), each 64 of k. Calls look_at(tile of a) for every
/// tile.
template <class A, class B, class LookAt>
__device__ __forceinline__ void sum_steps(const A& a, const B& b, int first_i, int first_j, int begin, int end,
                                          unsigned char* memory, WgmmaSums<B::Tile::rows>& sums, LookAt look_at) {
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  WgmmaRing<A, B> ring(a, b, first_i, first_j, begin, end, memory);
  ring.start();
#pragma unroll 1
  for (int k_tile = begin; k_tile < end; ++k_tile) {
    wgmma_wait(sums.d);  // the products of the stage that is filled next
    cp_async_wait<wgmma_stages - 2>();
    show_to_wgmma();
    __syncthreads();  // this stage has landed, and no product reads the last one
    wgmma_fence(sums.d);
#pragma unroll
    for (int k = 0; k < wgmma_depth / 16; ++k)  // 8,192 bytes: 64 rows, in both orders
      wgmma_async<A::Tile::along_k, B::Tile::along_k>(sums.d, ring.a() + warpgroup * 8192, ring.b(), k);
    wgmma_commit();
    ring.refill(k_tile);
    look_at(ring.a());
    ring.advance();
  }
  wgmma_wait(sums.d);
  cp_async_wait<0>();
  __syncthreads();  // shared memory is free
}

/// Sizes of a product's fp16 result [pixels, channels].
struct PixelEpilogue {
  int pixels;
  int channels;    ///< a multiple of 8
  float* partial;  ///< [splits, pixels, channels]; null: the sums are whole
};

/// Forward epilogue: bias and ReLU of an output channel, and the store of eight fp16 values.
/// `eight` counts groups of eight.
struct ForwardFinish {
  BiasEpilogue<AnyElements> epilogue;
  __device__ auto of_channel(int channel) const { return epilogue.of_row(channel); }
  __device__ void store(int64_t eight, const uint4& fp16) const { static_cast<uint4*>(epilogue.y.data)[eight] = fp16; }
};
/// Epilogue of the data gradient.
struct GradientFinish {
  HalfGradient dx;
  float factor;
  __device__ auto of_channel(int) const {
    return [factor = factor](float sum) { return sum * factor; };
  }
  __device__ void store(int64_t eight, const uint4& fp16) const { dx.store(eight, fp16); }
};

/// Stores sums as fp16 through shared memory, 16 bytes at a time.
template <int columns, class Finish>
__device__ __forceinline__ void store_pixels(const PixelEpilogue& epilogue, const Finish& finish, int first_pixel,
                                             int first_channel, const WgmmaSums<columns>& sums, unsigned char* memory) {
  constexpr int row_fp16 = columns + 8;  // padding spreads rows over the banks
  auto* fp16 = reinterpret_cast<f16*>(memory);
  sums.for_each_pair([&](int j) {
    const int channel = first_channel + j < epilogue.channels ? first_channel + j : 0;
    return [fp16, j, first_of = finish.of_channel(channel), second_of = finish.of_channel(channel + 1)](
               int i, float first, float second) {
      *reinterpret_cast<uint32_t*>(fp16 + i * row_fp16 + j) = pair_of_fp16(first_of(first), second_of(second));
    };
  });
  __syncthreads();
  constexpr int vectors = columns / 8;
  for (int i = static_cast<int>(threadIdx.x); i < wgmma_rows * vectors; i += wgmma_threads) {
    const int pixel = first_pixel + i / vectors;
    const int channel = first_channel + i % vectors * 8;
    if (pixel >= epilogue.pixels || channel >= epilogue.channels) continue;
    finish.store((static_cast<int64_t>(pixel) * epilogue.channels + channel) / 8,
                 *reinterpret_cast<const uint4*>(fp16 + i / vectors * row_fp16 + i % vectors * 8));
  }
}

/// wgmma product over pixels: y = finish(pixels * w). Blocks are numbered channels first, so that
/// neighbouring blocks share their pixels. Block (x, y) has split y of the k-tiles.
template <class Filters, class Finish>
__global__ void __launch_bounds__(wgmma_threads, 2)
    wgmma_pixel_kernel(PixelTiles pixels, Filters w, PixelEpilogue epilogue, Finish finish, int k_tiles, int of_split) {
  constexpr int columns = Filters::Tile::rows;
  unsigned char* memory = wgmma_memory();
  const int across = (epilogue.channels + columns - 1) / columns;
  const int first_pixel = static_cast<int>(blockIdx.x) / across * wgmma_rows;
  const int first_channel = static_cast<int>(blockIdx.x) % across * columns;
  const int begin = static_cast<int>(blockIdx.y) * of_split;
  const int end = begin + of_split < k_tiles ? begin + of_split : k_tiles;
  WgmmaSums<columns> sums = {};
  pdl_trigger();
  pdl_wait();
  sum_steps(pixels, w, first_pixel, first_channel, begin, end, memory, sums, [](const unsigned char*) {});
  if (epilogue.partial == nullptr) return store_pixels(epilogue, finish, first_pixel, first_channel, sums, memory);
  float* partial = epilogue.partial + static_cast<int64_t>(blockIdx.y) * epilogue.pixels * epilogue.channels;
  sums.for_each_pair([&](int j) {
    return [&, channel = first_channel + j](int i, float first, float second) {
      const int pixel = first_pixel + i;
      if (pixel < epilogue.pixels && channel < epilogue.channels)
        *reinterpret_cast<float2*>(partial + static_cast<int64_t>(pixel) * epilogue.channels + channel) = {first,
                                                                                                           second};
    };
  });
}

/// y = finish(sum over the splits in their order). One thread per eight neighbours.
template <class Finish>
__global__ void sum_pixel_splits_kernel(PixelEpilogue epilogue, Finish finish, int splits) {
  const int64_t count = static_cast<int64_t>(epilogue.pixels) * epilogue.channels / 8;
  pdl_trigger();
  pdl_wait();
  for_each_index(count, [&](int64_t i) {
    float sum[8] = {};
    for (int split = 0; split < splits; ++split) {
      const auto* eight = reinterpret_cast<const float4*>(epilogue.partial) + 2 * (split * count + i);
      const float4 low = eight[0], high = eight[1];
      const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += values[e];
    }
    const auto channel = static_cast<int>(8 * i % epilogue.channels);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] = finish.of_channel(channel + e)(sum[e]);
    finish.store(i, eight_fp16(sum));
  });
}

}  // namespace nibblenet
