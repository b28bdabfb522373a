#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/target.h"

// Kernels of folded convolutions (engine/core/fold.h).

namespace nibblenet {

constexpr int folded_warp_pixels = 32;
constexpr int folded_block_pixels = 4 * 2 * folded_warp_pixels;  // four warps go twice
constexpr int folded_channel_block = 64;
constexpr int folded_most_pairs = 512;  // of neighbouring weights of a filter

/// One axis: its outputs, sorted by pattern.
struct FoldedAxisView {
  int taps;
  int outputs;
  int patterns;
  const int32_t* first;    ///< [outputs], by output
  const int32_t* pattern;  ///< [outputs], by output
  const int32_t* sorted;   ///< [outputs] outputs of pattern 0, of pattern 1, …
  const int32_t* begin;    ///< [patterns + 1] where those of a pattern begin in `sorted`

  __device__ int count(int of) const { return begin[of + 1] - begin[of]; }
};

struct FoldedImages {
  const uint8_t* bytes;  ///< [N, height, width, 3]
  int count;
  int height;
  int width;
  int center[3];

  /// Selects by comparisons: indexing would make the compiler copy the struct to local memory.
  __device__ int center_of(int c) const { return c == 0 ? center[0] : c == 1 ? center[1] : center[2]; }
};

struct FoldedView {
  FoldedAxisView vertical;
  FoldedAxisView horizontal;
  int channels;         ///< K
  const float* biases;  ///< [patterns, K]

  __device__ int length() const { return vertical.taps * horizontal.taps * 3; }
};

/// Plain folded convolution, y[n, p, q, k] as engine/core/fold.h defines it. One thread per output,
/// neighbours in k: they read neighbouring weights and the same pixels.
__global__ void folded_conv2d_kernel(float* y, FoldedImages images, FoldedView folded, const float* filters,
                                     bool with_relu, int64_t outputs) {
  for_each_index(outputs, [&](int64_t index) {
    const int64_t pixel = index / folded.channels;
    const auto k = static_cast<int>(index - pixel * folded.channels);
    const int64_t row = pixel / folded.horizontal.outputs;
    const auto q = static_cast<int>(pixel - row * folded.horizontal.outputs);
    const int64_t n = row / folded.vertical.outputs;
    const auto p = static_cast<int>(row - n * folded.vertical.outputs);
    const int s = folded.vertical.pattern[p] * folded.horizontal.patterns + folded.horizontal.pattern[q];
    const float* filter = filters + static_cast<int64_t>(s) * folded.length() * folded.channels + k;
    const uint8_t* window =
        images.bytes + ((n * images.height + folded.vertical.first[p]) * images.width + folded.horizontal.first[q]) * 3;
    float sum = folded.biases[static_cast<int64_t>(s) * folded.channels + k];
    for (int a = 0; a < folded.vertical.taps; ++a) {
      const uint8_t* from = window + static_cast<int64_t>(a) * images.width * 3;
      for (int b = 0; b < folded.horizontal.taps; ++b)
        for (int c = 0; c < 3; ++c, ++from, filter += folded.channels)
          sum = fmaf(static_cast<float>(*from - images.center[c]), *filter, sum);
    }
    y[index] = with_relu ? relu(sum) : sum;
  });
}

/// Byte offsets in a window of two neighbouring weights, and the constant that turns 1024 + byte
/// into byte - center.
struct PairPlace {
  int first;
  int second;
  uint32_t minus;
  uint32_t unused;
};
struct PairPlaces {
  PairPlace places[folded_most_pairs];
};

/// Pixels of one pattern, numbered through the whole batch.
struct PatternPixels {
  int s;      ///< the pattern
  int first;  ///< of this block
  int count;
  int rows;
  int columns;
};

/// The pattern and pixels of this block. Blocks are numbered pattern by pattern.
__device__ PatternPixels pixels_of_block(const FoldedView& folded, int images) {
  auto block = static_cast<int>(blockIdx.x);
  PatternPixels pixels{};
  const int patterns = folded.vertical.patterns * folded.horizontal.patterns;
  for (pixels.s = 0; pixels.s < patterns; ++pixels.s) {
    pixels.rows = folded.vertical.count(pixels.s / folded.horizontal.patterns);
    pixels.columns = folded.horizontal.count(pixels.s % folded.horizontal.patterns);
    pixels.count = images * pixels.rows * pixels.columns;
    const int blocks = ceil_div(pixels.count, folded_block_pixels);
    if (block < blocks) break;
    block -= blocks;
  }
  pixels.first = block * folded_block_pixels;
  return pixels;
}

/// The output pixel and the window of pixel `index` of a pattern.
struct PixelPlace {
  int64_t pixel;
  const uint8_t* window;
};

__device__ PixelPlace place_of(const FoldedView& folded, const FoldedImages& images, const PatternPixels& pixels,
                               int index) {
  const int i = index < pixels.count ? index : pixels.count - 1;
  const int across = i / pixels.columns;
  const int64_t n = across / pixels.rows;
  const int down = across - static_cast<int>(n) * pixels.rows;
  const FoldedAxisView &vertical = folded.vertical, &horizontal = folded.horizontal;
  const int p = vertical.sorted[vertical.begin[pixels.s / horizontal.patterns] + down];
  const int q = horizontal.sorted[horizontal.begin[pixels.s % horizontal.patterns] + i - across * pixels.columns];
  return {(n * vertical.outputs + p) * horizontal.outputs + q,
          images.bytes + ((n * images.height + vertical.first[p]) * images.width + horizontal.first[q]) * 3};
}

/// Two bytes of a window as fp16 values, minus their centers. 1024 + byte is an fp16 value whose
/// low bits are the byte, so there is no conversion, and the difference is exact.
__device__ __forceinline__ uint32_t fp16_at(const uint8_t* window, const PairPlace& place) {
  constexpr uint32_t ones = 0x3C003C00U, thousands = 0x64006400U;
  const uint32_t bytes = static_cast<uint32_t>(window[place.first]) | static_cast<uint32_t>(window[place.second]) << 16;
  return fma_fp16x2(bytes | thousands, ones, place.minus);
}

/// Stores a lane's 16 neighbouring channels, from `k` on, of one pixel.
__device__ __forceinline__ void store_channels(f16* y, int k, int channels, const uint32_t (&pairs)[8], bool aligned) {
  if (aligned) {
    if (k < channels) {
      auto* to = reinterpret_cast<uint4*>(y + k);
      to[0] = {pairs[0], pairs[1], pairs[2], pairs[3]};
      to[1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (k + 2 * j < channels) y[k + 2 * j].bits = static_cast<uint16_t>(pairs[j]);
    if (k + 2 * j + 1 < channels) y[k + 2 * j + 1].bits = static_cast<uint16_t>(pairs[j] >> 16);
  }
}

/// Folded convolution on the tensor cores: pixels of one pattern x 64 channels. A warp computes 32
/// pixels, twice. The bytes become fp16 values, exactly, in the registers of the mma fragment.
///
/// Weights lie in mma order too: filters[s, channel block, k-tile of 16 weights, lane, 8 tiles of 8
/// channels, 2] pairs of fp16 values, times 1 / factor. Column c of tile j is channel 16 (c / 2) +
/// 2 j + c % 2 of the block, so that a lane ends with 16 neighbours. Three blocks per
/// multiprocessor: four would leave 128 registers a thread, which are too few.
__global__ void __launch_bounds__(128, 3)
    folded_conv2d_half_kernel(f16* y, FoldedImages images, FoldedView folded, const uint4* filters, float factor,
                              bool with_relu, bool aligned) {
  auto& places = shared<PairPlaces>().places;
  const int k_tiles = ceil_div(folded.length(), 16);
  const int run = folded.horizontal.taps * 3;
  for (int i = static_cast<int>(threadIdx.x); i < k_tiles * 8; i += static_cast<int>(blockDim.x)) {
    int at[2];
    uint32_t minus[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int k = 2 * i + e < folded.length() ? 2 * i + e : 0;  // past the end, weights are 0
      at[e] = k / run * images.width * 3 + k % run;
      minus[e] = 0xE400U + static_cast<uint32_t>(images.center_of(k % 3));  // -(1024 + center)
    }
    places[i] = {at[0], at[1], minus[0] | minus[1] << 16, 0};
  }
  __syncthreads();

  const PatternPixels pixels = pixels_of_block(folded, images.count);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int channel_blocks = ceil_div(folded.channels, folded_channel_block);
  const uint4* of_pattern =
      filters + (static_cast<int64_t>(pixels.s) * channel_blocks + static_cast<int>(blockIdx.y)) * k_tiles * 128;
  const int k = static_cast<int>(blockIdx.y) * folded_channel_block + 16 * t;

  for (int turn = 0; turn < 2; ++turn) {
    const int first = pixels.first + (2 * warp + turn) * folded_warp_pixels;
    if (first >= pixels.count) return;
    PixelPlace place[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) place[i] = place_of(folded, images, pixels, first + 8 * i + g);
    float sum[2][8][4] = {};
#pragma unroll 1
    for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
      const PairPlace low = places[k_tile * 8 + t], high = places[k_tile * 8 + 4 + t];
      uint32_t a[2][4];
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        a[u][0] = fp16_at(place[2 * u].window, low);
        a[u][1] = fp16_at(place[2 * u + 1].window, low);
        a[u][2] = fp16_at(place[2 * u].window, high);
        a[u][3] = fp16_at(place[2 * u + 1].window, high);
      }
      const uint4* b = of_pattern + (k_tile * 32 + lane) * 4;
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const uint4 two = b[j / 2];
        const uint32_t even[2] = {two.x, two.y}, odd[2] = {two.z, two.w};
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          mma_16816(sum[u][j], a[u], even);
          mma_16816(sum[u][j + 1], a[u], odd);
        }
      }
    }
    const float* bias = folded.biases + static_cast<int64_t>(pixels.s) * folded.channels;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + 8 * i + g >= pixels.count) continue;
      uint32_t pairs[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float value[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int channel = k + 2 * j + e;
          value[e] = sum[i / 2][j][i % 2 * 2 + e] * factor + (channel < folded.channels ? bias[channel] : 0.0F);
          if (with_relu) value[e] = relu(value[e]);
        }
        pairs[j] = pair_of_fp16(value[0], value[1]);
      }
      store_channels(y + place[i].pixel * folded.channels, k, folded.channels, pairs, aligned);
    }
  }
}

}  // namespace nibblenet
