#pragma once

#include "kernels/cuda/conv/few_channels_epilogue.cuh"
#include "kernels/cuda/conv/few_channels_filters.cuh"

// Convolutions of few channels on the tensor cores, such as AlexNet's first one: implicit GEMM
// without an im2col matrix. In a channels-last image, a window is `size` runs of size x C
// neighbouring fp16 values. Where runs begin at 4-byte words, each pair of values that mma.m16n8k16
// needs in a lane is one word of the image's rows in shared memory.
//
// Therefore k counts pairs. Their order is free, as long as both operands share it. The host
// chooses one in which eight neighbouring pixels read different banks. A run of odd length has one
// value more, whose weight is 0. That value belongs to the next pixel: the product is 0 unless it
// is not finite.

namespace nibblenet {

/// Starts copying a band's input, as one cp.async group, with zeros in the padding and outside of
/// x. One warp per row.
__device__ __forceinline__ void copy_band(const FewChannels& p, const FewChannelsShared& shared,
                                          const OutputBands::Band& band) {
  const OutputBands& b = p.bands;
  const ConvolutionSizes& s = b.sizes;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = band.row * s.stride - s.padding;
  const int first = b.first_copied(band);
  const int row_elements = s.w * s.c;
  const f16* image = p.x + static_cast<int64_t>(band.image) * s.h * row_elements;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < b.height; row += static_cast<int>(blockDim.x) / 32) {
    const int h = first_row + row;
    const bool inside = h >= 0 && h < s.h;
    const f16* from = image + (inside ? h : 0) * row_elements;
    unsigned char* to = shared.input() + row * b.pitch * 4;
    if (b.aligned) {
      for (int vector = lane; vector < b.vectors; vector += 32) {
        const int element = first + vector * 8;
        const bool exists = inside && element >= 0 && element < row_elements;
        cp_async_16(to + vector * 16, exists ? from + element : p.x, exists);
      }
    } else {
      for (int i = lane; i < b.vectors * 8; i += 32) {
        const bool exists = inside && first + i >= 0 && first + i < row_elements;
        reinterpret_cast<f16*>(to)[i] = exists ? from[first + i] : f16{};
      }
    }
  }
  cp_async_commit();
}

/// A warp's operands of one k-tile.
template <int tiles, int fragments>
struct StepOperands {
  uint32_t a[fragments][4];
  uint32_t b[tiles][2];
};

/// sums = filters x windows. `window`: byte offset of the window of the lane's column, for each
/// tile. Reads the next k-tile's operands while it multiplies the current one.
template <int tiles, int fragments>
__device__ __forceinline__ void multiply_band(const FewChannelsShared& shared, const int (&window)[tiles], int shift,
                                              FewChannelsTileSums<tiles, fragments>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned char* input = shared.input() + shift;
  const FewChannelsShared::Pairs* pairs = shared.pairs() + lane % 4;
  const unsigned char* filters = shared.filters() + lane % 16 * 32 + ((lane / 16 ^ (lane >> 2 & 1)) << 4);
  using Operands = StepOperands<tiles, fragments>;
  const auto load = [&](int k_tile, Operands& to) {
    const FewChannelsShared::Pairs pair = pairs[k_tile * 4];
#pragma unroll
    for (int u = 0; u < fragments; ++u)
      ldmatrix_x4(to.a[u], filters + (k_tile * fragments + u) * few_channels_fragment_bytes);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      to.b[tile][0] = *reinterpret_cast<const uint32_t*>(input + window[tile] + pair.low);
      to.b[tile][1] = *reinterpret_cast<const uint32_t*>(input + window[tile] + pair.high);
    }
  };
  const auto multiply = [&](const Operands& from) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
      for (int u = 0; u < fragments; ++u) mma_16816(sums.d[tile][u], from.a[u], from.b[tile]);
  };
  const int k_tiles = shared.bands.k_tiles;
  Operands even, odd;
  load(0, even);
#pragma unroll 1
  for (int k_tile = 0; k_tile < k_tiles; k_tile += 2) {
    if (k_tile + 1 < k_tiles) load(k_tile + 1, odd);
    multiply(even);
    if (k_tile + 1 >= k_tiles) break;
    if (k_tile + 2 < k_tiles) load(k_tile + 2, even);
    multiply(odd);
  }
}

/// Byte offset of the window of the lane's column, for each of its warp's tiles. Tiles past the end
/// get a valid offset; their results are not stored.
template <int tiles>
__device__ __forceinline__ void find_windows(const OutputBands& b, int first_tile, int (&window)[tiles]) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = (first_tile + tile) / b.tiles_per_row;
    const int column = (first_tile + tile - row * b.tiles_per_row) * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
    const int read = column < b.columns ? column : b.columns - 1;
    window[tile] = row < b.rows ? row * b.sizes.stride * b.pitch * 4 + read * b.sizes.stride * b.sizes.c * 2 : 0;
  }
}

/// Convolution of few channels: y[pixel, k] = epilogue(sum over pairs), or its max pooling by 3 x 3
/// at stride 2. Block (x, y) owns 16 filters per fragment, which it decodes once, and the walks x,
/// x + gridDim.x, and so on. A warp owns all of the block's filters for `tiles` times eight pixels;
/// with pooling, these are one row. The next band's input is copied while results are written. Two
/// blocks per multiprocessor hide the remaining latency.
template <class Weights, int tiles, int fragments, bool pooling>
__global__ void __launch_bounds__(32 * few_channels_warps, 2) few_channels_kernel(FewChannels p, Weights weights) {
  const FewChannelsShared memory{dynamic_shared(), p.bands};
  const OutputBands& b = p.bands;
  const int first_filter = static_cast<int>(blockIdx.y) * b.filters;
  pdl_trigger();
  copy_codes(p, memory, weights, first_filter);
  cp_async_commit();
  auto& table = shared<CodeValues>();
  weights.prepare(table);
  prepare_few_channels(p, memory, first_filter);
  pdl_wait();
  OutputBands::Place place{static_cast<int>(blockIdx.x), 0};
  copy_band(p, memory, b.band(place));  // arrives while filters are decoded
  cp_async_wait<1>();
  __syncthreads();  // codes and tables are there
  load_filters<fragments>(p, memory, weights, first_filter, table);

  const int first_tile = static_cast<int>(threadIdx.x) / 32 * tiles;
  int window[tiles];
  find_windows<tiles>(b, first_tile, window);
  while (place.walk < b.walks()) {
    const OutputBands::Band band = b.band(place);
    cp_async_wait<0>();
    __syncthreads();  // the band has landed; before the first band, the filters too
    FewChannelsTileSums<tiles, fragments> sums = {};
    if (first_tile < b.tiles())
      multiply_band<tiles, fragments>(memory, window, (b.first_element(band) - b.first_copied(band)) * 2, sums);
    __syncthreads();  // all threads are done reading this band
    const OutputBands::Place next = next_place(b, place);
    if (next.walk < b.walks()) copy_band(p, memory, b.band(next));
    FewChannelsShared::Finish finish[2 * fragments];
#pragma unroll
    for (int i = 0; i < 2 * fragments; ++i)
      finish[i] = memory.finish()[static_cast<int>(threadIdx.x) % 32 / 4 * 2 * fragments + i];
    if constexpr (pooling) {
      pool_along_row<tiles, fragments>(p, memory, finish, sums);
      __syncthreads();
      pool_down<fragments>(p, memory, band, place.band == 0, first_filter);
    } else {
      store_band<tiles, fragments>(p, band, first_filter, finish, sums);
    }
    place = next;
  }
}

}  // namespace nibblenet
